"""Replicas that are pods: listed once by label, then followed as the API server tells of them.

Spoken over plain HTTPS with the pod's service account, which may get, list and watch pods: that is
three calls of the API, and the official client would bring thirty packages for them.

A watch goes on from where the one before it ended. One that is too old for that (410) is begun anew
by a list, as is everything after the API server was away; what was missed is then found by
comparison.
"""

import asyncio
import os
import ssl
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from pathlib import Path

import httpx2
import msgspec

from sessile.discovery.pods import Pod, PodList, WatchEvent, after, listed
from sessile.errors import DiscoveryFailed, SettingsError
from sessile.router.discovery import Listed

_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
_WATCH_S = 60  # a watch ends by then: a line that has died unseen is found out soon after
_LATE_S = 15.0
_CALL_S = 10.0
_BETWEEN_S = 0.1  # for a server that ends every watch at once
_GONE = 410


class Cluster(msgspec.Struct, frozen=True):
    """Where an API server is and how to speak to it. The token is read anew for each call, since
    the kubelet replaces it; without a file there is none."""

    url: str
    verify: ssl.SSLContext | bool = True
    token: Path | None = None
    namespace: str | None = None

    def headers(self) -> dict[str, str]:
        """What shows who is calling; raises `DiscoveryFailed`."""
        if self.token is None:
            return {}
        try:
            return {"authorization": f"Bearer {self.token.read_text().strip()}"}
        except OSError as error:
            raise DiscoveryFailed(f"cannot read {self.token}: {error.strerror}") from error


def in_cluster(account: Path = _ACCOUNT) -> Cluster:
    """The cluster that this process is a pod of. Raises `SettingsError` where it is none."""
    host, port = (os.environ.get(f"KUBERNETES_SERVICE_{n}") for n in ("HOST", "PORT"))
    if not host or not port:
        raise SettingsError(
            "discover: this is no pod of a cluster; add &api=http://127.0.0.1:8001 for one that "
            "`kubectl proxy` reaches"
        )
    shown = f"[{host}]" if ":" in host else host
    try:
        verify = ssl.create_default_context(cafile=str(account / "ca.crt"))
        namespace = (account / "namespace").read_text().strip()
    except OSError as error:
        raise SettingsError(
            f"discover: the pod has no service account in {account} ({error.strerror}); set "
            "automountServiceAccountToken: true"
        ) from error
    return Cluster(f"https://{shown}:{port}", verify, account / "token", namespace)


def open_api(url: str) -> Cluster:
    """An API server that asks for nothing, such as `kubectl proxy`."""
    if not url.startswith(("http://", "https://")):
        raise SettingsError(f"discover: api={url!r} is not a URL, as in http://127.0.0.1:8001")
    return Cluster(url.rstrip("/"))


class KubernetesSource:
    """The pods of one namespace that a label selector matches. `engine` and `model` are those of
    the pool."""

    def __init__(
        self, name: str, cluster: Cluster, namespace: str, selector: str, port: str | None,
        engine: str, model: str | None,
    ) -> None:  # fmt: skip
        self.name = name
        self._cluster = cluster
        self._path = f"/api/v1/namespaces/{namespace}/pods"
        self._selector = selector
        self._port = port
        self._engine = engine
        self._model = model

    async def lists(self) -> AsyncIterator[tuple[Listed, ...]]:
        """As `Source` says."""
        cluster = self._cluster
        timeout = httpx2.Timeout(_CALL_S, read=_WATCH_S + _LATE_S)
        async with httpx2.AsyncClient(
            base_url=cluster.url, verify=cluster.verify, timeout=timeout, trust_env=False
        ) as http:
            while True:
                pods, version = await self._list(http)
                yield self._read(pods)
                async with aclosing(self._changes(http, version)) as changes:
                    async for kind, pod in changes:
                        pods = after(pods, kind, pod)
                        yield self._read(pods)

    def _read(self, pods: dict[str, Pod]) -> tuple[Listed, ...]:
        return listed(pods.values(), self._port, self._engine, self._model)

    async def _list(self, http: httpx2.AsyncClient) -> tuple[dict[str, Pod], str]:
        """All pods by name, and the version to watch from."""
        query = {"labelSelector": self._selector}
        try:
            answer = await http.get(
                self._path, params=query, headers=self._cluster.headers(), timeout=_CALL_S
            )
        except httpx2.HTTPError as error:
            raise self._away(error) from error
        if answer.status_code != 200:
            raise self._refused(answer.status_code)
        try:
            found = msgspec.json.decode(answer.content, type=PodList)
        except msgspec.DecodeError as error:
            raise DiscoveryFailed(f"{self._cluster.url} lists no pods: {error}") from error
        return {pod.metadata.name: pod for pod in found.items}, found.metadata.resource_version

    async def _changes(
        self, http: httpx2.AsyncClient, version: str
    ) -> AsyncGenerator[tuple[str, Pod], None]:
        """Each pod as it changes, from one watch to the next; ends where the version that is to be
        gone on from is too old."""
        while True:
            async with aclosing(self._watch(http, version)) as events:
                async for event in events:
                    if event.type == "ERROR":
                        if event.object.get("code") == _GONE:
                            return
                        raise self._refused(event.object.get("code"))
                    try:
                        pod = msgspec.convert(event.object, Pod)
                    except msgspec.ValidationError as error:
                        raise DiscoveryFailed(
                            f"{self._cluster.url} told of no pod: {error}"
                        ) from error
                    version = pod.metadata.resource_version
                    if event.type != "BOOKMARK":
                        yield event.type, pod
            await asyncio.sleep(_BETWEEN_S)

    async def _watch(
        self, http: httpx2.AsyncClient, version: str
    ) -> AsyncGenerator[WatchEvent, None]:
        """What one watch tells, until the server ends it."""
        query = {
            "labelSelector": self._selector, "watch": "1", "resourceVersion": version,
            "allowWatchBookmarks": "true", "timeoutSeconds": str(_WATCH_S),
        }  # fmt: skip
        headers = self._cluster.headers()
        try:
            async with http.stream("GET", self._path, params=query, headers=headers) as answer:
                if answer.status_code == _GONE:
                    yield WatchEvent("ERROR", {"code": _GONE})
                    return
                if answer.status_code != 200:
                    raise self._refused(answer.status_code)
                async for line in answer.aiter_lines():
                    if line:
                        yield msgspec.json.decode(line, type=WatchEvent)
        except httpx2.HTTPError as error:
            raise self._away(error) from error
        except msgspec.DecodeError as error:
            raise DiscoveryFailed(f"{self._cluster.url} tells no events: {error}") from error

    def _away(self, error: httpx2.HTTPError) -> DiscoveryFailed:
        why = str(error) or type(error).__name__
        return DiscoveryFailed(f"the Kubernetes API at {self._cluster.url} is away: {why}")

    def _refused(self, status: object) -> DiscoveryFailed:
        told = f"the Kubernetes API at {self._cluster.url} answered {status} to {self._path}"
        if status in (401, 403):
            told += "; let the router's service account get, list and watch pods there"
        return DiscoveryFailed(told)
