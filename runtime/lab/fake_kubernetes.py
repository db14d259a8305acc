"""The part of the Kubernetes API that lists and watches pods, as an ASGI application to try routers
on, and with it what happens to an API server: its history is cut off, it refuses, it is away.

Its methods may be called from another thread than the one that serves it.
"""

import asyncio
from typing import Any
from urllib.parse import parse_qs

import msgspec
from starlette.types import Receive, Scope, Send

from sessile.lab.asgi import answer, finish, hung_up, start, write

_LOOK_S = 0.01


class FakeKubernetes:
    """One namespace of pods, none of which is real. `calls` counts lists and watches."""

    def __init__(self, namespace: str = "default") -> None:
        self._path = f"/api/v1/namespaces/{namespace}/pods"
        self._pods: dict[str, dict[str, Any]] = {}
        self._history: list[tuple[int, str, dict[str, Any]]] = []
        self._version = 1
        self._oldest = 0
        self.calls = {"list": 0, "watch": 0}
        self.away = False
        self.refuses: int | None = None

    def run(self, name: str, port: int, *, ready: bool = True, **labels: str) -> None:
        """There is a pod at a port of this machine; or it is now ready, or not."""
        kind = "MODIFIED" if name in self._pods else "ADDED"
        conditions = [{"type": "Ready", "status": str(ready)}]
        self._tell(
            kind,
            {
                "metadata": {"name": name, "labels": {"app": "engine", **labels}},
                "spec": {"containers": [{"ports": [{"name": "http", "containerPort": port}]}]},
                "status": {"phase": "Running", "podIP": "127.0.0.1", "conditions": conditions},
            },
        )

    def terminate(self, name: str) -> None:
        """The pod is to end, and has its grace period."""
        pod = self._pods[name]
        about = {**pod["metadata"], "deletionTimestamp": "2026-11-27T06:30:43Z"}
        self._tell("MODIFIED", {**pod, "metadata": about})

    def remove(self, name: str) -> None:
        """The pod has ended."""
        self._tell("DELETED", self._pods[name])

    def forget(self) -> None:
        """Cut off the history: a watch from before now is told that it is too old, and those that
        run are ended, to be begun again from there."""
        self._version += 1
        self._oldest = self._version
        self._history.clear()

    def _tell(self, kind: str, pod: dict[str, Any]) -> None:
        self._version += 1
        about = {**pod["metadata"], "resourceVersion": str(self._version)}
        pod = {**pod, "metadata": about}
        if kind == "DELETED":
            del self._pods[about["name"]]
        else:
            self._pods[about["name"]] = pod
        self._history.append((self._version, kind, pod))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one call; one that comes while it is away is cut off."""
        if scope["type"] != "http":
            return
        if self.away:
            raise ConnectionAbortedError("the API server is away")
        query = parse_qs(scope["query_string"].decode())
        if self.refuses is not None or scope["path"] != self._path:
            await answer(send, self.refuses or 404, {"code": self.refuses or 404})
        elif "watch" in query:
            self.calls["watch"] += 1
            await self._watch(query, receive, send)
        else:
            self.calls["list"] += 1
            items = [pod for pod in self._pods.values() if _matches(pod, query)]
            about = {"resourceVersion": str(self._version)}
            await answer(send, 200, {"metadata": about, "items": items})

    async def _watch(self, query: dict[str, list[str]], receive: Receive, send: Send) -> None:
        """Tell what comes after the version asked for, until the client leaves."""
        seen = int(query["resourceVersion"][0])
        leaving = asyncio.create_task(hung_up(receive))
        try:
            await start(send)
            while not leaving.done():
                if self.away:
                    raise ConnectionAbortedError("the API server is away")
                if seen < self._oldest:
                    status = {"kind": "Status", "code": 410, "reason": "Expired"}
                    await _line(send, {"type": "ERROR", "object": status})
                    break
                for version, kind, pod in list(self._history):
                    if version > seen and _matches(pod, query):
                        seen = version
                        await _line(send, {"type": kind, "object": pod})
                await asyncio.sleep(_LOOK_S)
            await finish(send)
        finally:
            leaving.cancel()


def _matches(pod: dict[str, Any], query: dict[str, list[str]]) -> bool:
    """Whether the pod has all labels of the selector, each as NAME=VALUE."""
    wanted = dict(each.split("=", 1) for each in query["labelSelector"][0].split(","))
    return bool(wanted.items() <= pod["metadata"]["labels"].items())


async def _line(send: Send, event: dict[str, Any]) -> None:
    await write(send, msgspec.json.encode(event) + b"\n")
