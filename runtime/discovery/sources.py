"""Which source a setting names.

    file:///etc/sessile/replicas.toml
    dns://engines.example:30000
    kubernetes://NAMESPACE?selector=app=sglang&port=30000
    ray://PROXY:8000/APPLICATION

`port` of Kubernetes is a number or the name of a container's port, and the first one that the pod
names without it; `api` is another address of the API server, as of `kubectl proxy`. An empty
namespace is the router's own. Of Ray Serve any node's HTTP proxy will do.
"""

from pathlib import Path
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from sessile.discovery.dns import DnsSource
from sessile.discovery.file import FileSource
from sessile.engines.kinds import engine
from sessile.errors import InvalidRequest, SettingsError
from sessile.ray.source import RaySource, Reports
from sessile.router.discovery import Source

FORMS = (
    "file:///PATH.toml, dns://HOST:PORT, kubernetes://NAMESPACE?selector=LABEL=VALUE&port=PORT or "
    "ray://HOST:PORT/APPLICATION"
)


def source(text: str, kind: str, model: str | None, report: Reports) -> Source:
    """The source that `text` names, of replicas of the engine `kind`; `report` is what this router
    tells sources that scale by it. Raises `SettingsError`."""
    try:
        engine(kind)
    except InvalidRequest as error:
        raise SettingsError(f"discover: {error.message}") from error
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError as error:
        raise SettingsError(f"discover: {text!r}: {error}") from error
    if parts.scheme == "file":
        if parts.netloc or not parts.path or parts.query:
            raise SettingsError(
                f"discover: {text!r}: name a file by its whole path, as in "
                "file:///etc/sessile/replicas.toml"
            )
        return FileSource(text, Path(unquote(parts.path)), kind, model)
    if parts.scheme == "dns":
        if not parts.hostname or not port or parts.path.strip("/") or parts.query:
            raise SettingsError(
                f"discover: {text!r}: give host and port, as in dns://engines:30000"
            )
        return DnsSource(text, parts.hostname, port, kind, model)
    if parts.scheme == "ray":
        if not parts.hostname or not port or not parts.path.strip("/") or parts.query:
            raise SettingsError(
                f"discover: {text!r}: give proxy and application, as in ray://head:8000/sessile"
            )
        return RaySource(text, text, report)
    if parts.scheme == "kubernetes":
        return _kubernetes(text, parts, kind, model)
    raise SettingsError(f"discover: {text!r} is not {FORMS}")


def _kubernetes(text: str, parts: SplitResult, kind: str, model: str | None) -> Source:
    from sessile.discovery.kubernetes import KubernetesSource, in_cluster, open_api

    asked = dict(parse_qsl(parts.query, keep_blank_values=True))
    selector, port, api = (asked.pop(name, None) for name in ("selector", "port", "api"))
    if asked or not selector or parts.path.strip("/"):
        raise SettingsError(
            f"discover: {text!r}: give a selector and perhaps a port, as in "
            "kubernetes://default?selector=app=sglang&port=30000"
        )
    cluster = open_api(api) if api else in_cluster()
    namespace = parts.netloc or cluster.namespace
    if not namespace:
        raise SettingsError(f"discover: {text!r}: name the namespace, kubernetes://NAMESPACE?...")
    return KubernetesSource(text, cluster, namespace, selector, port, kind, model)
