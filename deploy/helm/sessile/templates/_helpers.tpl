{{- define "sessile.name" -}}
{{ printf "%s-sessile" .Release.Name | trunc 50 | trimSuffix "-" }}
{{- end -}}

{{- define "sessile.common" -}}
app.kubernetes.io/name: sessile
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "sessile.routerLabels" -}}
{{ include "sessile.common" . }}
app.kubernetes.io/component: router
{{- end -}}

{{- define "sessile.engineLabels" -}}
{{ include "sessile.common" . }}
app.kubernetes.io/component: engine
{{- end -}}
