"""The two ways of a tool loop, for its benchmark: over the WebSocket each turn sends what is new,
over stateless HTTP the whole conversation.
"""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx2
import msgspec
from websockets.asyncio.client import ClientConnection, connect

from sessile.errors import ReplicaError, SessileError

_TIMEOUT_S = 600.0
_LAST = ("response.completed", "response.incomplete", "response.failed", "error")


class Said(msgspec.Struct, frozen=True):
    """What came of one turn: its response, and seconds to its first token."""

    response: dict[str, Any]
    ttft_s: float | None


class OverWebSocket:
    """Each turn sends what is new, and follows the one before."""

    how = "websocket"

    def __init__(self, ws: ClientConnection) -> None:
        self._ws = ws
        self._head: str | None = None

    async def turn(self, items: list[Any], settings: dict[str, Any]) -> Said:
        """Run one turn that brings `items`."""
        body = {"type": "response.create", "input": items, **settings}
        if self._head is not None:
            body["previous_response_id"] = self._head
        began = time.perf_counter()
        await self._ws.send(json.dumps(body))
        said = await _listen(self._events(), began)
        self._head = said.response["id"]
        return said

    async def _events(self) -> AsyncIterator[dict[str, Any]]:
        while True:
            async with asyncio.timeout(_TIMEOUT_S):
                yield json.loads(await self._ws.recv())


class OverHttp:
    """Each turn sends the whole conversation, and nothing is stored."""

    how = "http"

    def __init__(self, http: httpx2.AsyncClient) -> None:
        self._http = http
        self._items: list[Any] = []

    async def turn(self, items: list[Any], settings: dict[str, Any]) -> Said:
        """Run one turn that brings `items`."""
        self._items += items
        body = {"input": self._items, "store": False, "stream": True, **settings}
        began = time.perf_counter()
        async with self._http.stream("POST", "/v1/responses", json=body) as reply:
            if reply.status_code >= 400:
                raise _failed(json.loads(await reply.aread()))
            said = await _listen(_sse(reply), began)
        self._items += said.response["output"]
        return said


async def _sse(reply: httpx2.Response) -> AsyncIterator[dict[str, Any]]:
    async for line in reply.aiter_lines():
        if line.startswith("data: ") and line != "data: [DONE]":
            yield json.loads(line[6:])


async def _listen(events: AsyncIterator[dict[str, Any]], began: float) -> Said:
    """Read a turn to its end."""
    first: float | None = None
    async for event in events:
        kind = event["type"]
        if first is None and (kind.endswith(".delta") or kind == "response.output_item.added"):
            first = time.perf_counter() - began
        if kind in ("error", "response.failed"):
            raise _failed(event if kind == "error" else event["response"])
        if kind in _LAST:
            return Said(event["response"], first)
    raise ReplicaError("the stream ended before its response")


def _failed(told: dict[str, Any]) -> SessileError:
    return ReplicaError(str((told.get("error") or {}).get("message") or told))


@asynccontextmanager
async def open_way(how: str, port: int, key: str) -> AsyncIterator[OverWebSocket | OverHttp]:
    """`websocket` or `http`, to a port of this machine."""
    headers = {"authorization": f"Bearer {key}"}
    here = f"127.0.0.1:{port}"
    if how == "websocket":
        async with connect(
            f"ws://{here}/v1/responses", additional_headers=headers, compression=None,
            max_size=None, proxy=None,
        ) as ws:  # fmt: skip
            yield OverWebSocket(ws)
    else:
        async with httpx2.AsyncClient(
            base_url=f"http://{here}", headers=headers, timeout=_TIMEOUT_S, trust_env=False
        ) as http:
            yield OverHttp(http)
