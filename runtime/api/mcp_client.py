"""Calls MCP servers for a response, through the official `mcp` client over streamable HTTP.

A server that fails, lies or hangs harms its own call only: each is bounded in time and in size, and
what went wrong becomes the item's error. Each server's connection lives in a task of its own, since
a client whose transport breaks cancels the task that holds it.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack, suppress
from importlib.util import find_spec
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import urlsplit

import httpx2

from sessile.errors import Forbidden, NotSupported
from sessile.settings import Settings

if TYPE_CHECKING:
    from mcp import Client

log = logging.getLogger("sessile.api")

_MOST_TOOLS = 256
_MOST_PAGES = 16
_MOST_OUTPUT_BYTES = 1 << 20
_CLOSE_TIMEOUT_S = 0.5  # the client of a whole response waits for it

Item = dict[str, Any]


class McpServers:
    """The MCP servers of one response, connected when they are first needed. An async context
    manager: whatever happens in it, no connection outlives it.

    `servers` are the request's tools of type `mcp`. Raises `Forbidden` for a host that the settings
    do not allow, `NotSupported` where the `mcp` package is not installed.
    """

    def __init__(self, servers: Sequence[Item], settings: Settings) -> None:
        mine = not settings.auth.api_keys and not settings.auth.allow_open
        allowed = settings.mcp.hosts or (("*",) if mine else ())
        for server in servers:
            host = urlsplit(server["server_url"]).hostname
            if "*" not in allowed and host not in allowed:
                raise Forbidden(
                    f"MCP servers of host {host!r} may not be called from here; "
                    "mcp.hosts lists those that may", param="tools",
                )  # fmt: skip
        self._timeout_s = settings.mcp.timeout_s
        self._held = {server["server_label"]: _Held(server, self._timeout_s) for server in servers}
        if servers and find_spec("mcp") is None:
            raise NotSupported(
                "MCP tools need the package mcp: pip install 'sessile[mcp]'", param="tools"
            )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await asyncio.gather(*(held.aclose() for held in self._held.values()))

    async def list_tools(self, label: str) -> tuple[list[Item], str | None]:
        """The server's tools as they stand in a `mcp_list_tools` item, and what went wrong."""
        try:
            async with asyncio.timeout(self._timeout_s):
                client = await self._held[label].client()
                tools: list[Item] = []
                cursor: str | None = None
                for _ in range(_MOST_PAGES):
                    page = await client.list_tools(cursor=cursor, cache_mode="bypass")
                    tools += [_listed(tool) for tool in page.tools]
                    cursor = page.next_cursor
                    if cursor is None or len(tools) >= _MOST_TOOLS:
                        break
                return tools[:_MOST_TOOLS], None
        except Exception as error:  # whatever a foreign server and its client can do wrong
            told = self._sentence(error)
            log.warning("mcp server listed no tools label=%s why=%r", label, told)
            return [], told

    async def call(self, label: str, name: str, arguments: dict[str, Any]) -> Item:
        """Call a tool; the fields `output` and `error` of its `mcp_call` item."""
        if label not in self._held:
            return failed(f"the request names no MCP server {label!r}")
        try:
            async with asyncio.timeout(self._timeout_s):
                client = await self._held[label].client()
                result = await client.call_tool(name, arguments)
        except Exception as error:  # as above
            told = self._sentence(error)
            log.warning("mcp call failed label=%s tool=%s why=%r", label, name, told)
            return failed(told, getattr(error, "code", None))
        content = [part.model_dump(mode="json", exclude_none=True) for part in result.content]
        if result.is_error:
            return {"output": None,
                    "error": {"type": "mcp_tool_execution_error", "content": content}}  # fmt: skip
        output = "\n".join(_text(part) for part in content)
        if len(output.encode()) > _MOST_OUTPUT_BYTES:
            return failed(f"the tool gave more than {_MOST_OUTPUT_BYTES} bytes")
        return {"output": output, "error": None}

    def _sentence(self, error: BaseException) -> str:
        if isinstance(error, TimeoutError):
            return f"the MCP server did not answer within {self._timeout_s:g} s"
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        return f"{type(error).__name__}: {error}"[:500]


class _Held:
    """One server's connection, opened at its first use."""

    def __init__(self, server: Item, timeout_s: float) -> None:
        self._server = server
        self._timeout_s = timeout_s
        self._over = asyncio.Event()
        self._ready: asyncio.Future[Client] | None = None
        self._task: asyncio.Task[None] | None = None

    async def client(self) -> "Client":
        """The connected client; raises what kept it from connecting."""
        if self._ready is None or (self._task is not None and self._task.done()):
            self._ready = asyncio.get_running_loop().create_future()
            self._task = asyncio.create_task(self._hold(self._ready), name="mcp server")
        return await asyncio.shield(self._ready)

    async def aclose(self) -> None:
        """Say goodbye to the server, briefly."""
        if self._task is None:
            return
        self._over.set()
        await asyncio.wait([self._task], timeout=_CLOSE_TIMEOUT_S)
        self._task.cancel()
        await asyncio.wait([self._task])

    async def _hold(self, ready: "asyncio.Future[Client]") -> None:
        headers = dict(self._server.get("headers") or {})
        if token := self._server.get("authorization"):
            headers["Authorization"] = f"Bearer {token}"
        try:
            make_client, make_transport = await asyncio.to_thread(_modules)
            async with AsyncExitStack() as stack:
                http = await stack.enter_async_context(
                    httpx2.AsyncClient(headers=headers, timeout=httpx2.Timeout(self._timeout_s))
                )
                transport = make_transport(self._server["server_url"], http_client=http)
                client = await stack.enter_async_context(make_client(transport))
                ready.set_result(client)
                await self._over.wait()
        except (
            Exception
        ) as error:  # told to whoever waits; afterwards their calls fail by themselves
            if not ready.done():
                ready.set_exception(error)
        finally:
            if not ready.done():
                ready.cancel()
            with suppress(asyncio.CancelledError):
                ready.exception()  # looked at, also where nobody waits any more


def failed(message: str, code: int | None = None) -> Item:
    """The fields of an `mcp_call` that did not come to an answer of the tool."""
    error = {"type": "mcp_protocol_error", "code": code or 0, "message": message}
    return {"output": None, "error": error}


def _modules() -> "tuple[type[Client], Callable[..., Any]]":
    """What is used of the client; importing it takes a second, and so is not for the loop."""
    from mcp import Client
    from mcp.client.streamable_http import streamable_http_client

    return Client, streamable_http_client


def _listed(tool: Any) -> Item:
    notes = tool.annotations
    return {
        "name": tool.name,
        "description": tool.description,
        "input_schema": tool.input_schema,
        "annotations": None if notes is None else notes.model_dump(
            mode="json", by_alias=True, exclude_none=True
        ),
    }  # fmt: skip


def _text(part: Item) -> str:
    """A part of a result as the model reads it; what is no text is named."""
    if isinstance(part.get("text"), str):
        return str(part["text"])
    inner = part.get("resource")
    if isinstance(inner, dict) and isinstance(inner.get("text"), str):
        return str(inner["text"])
    return f"[{part.get('type', 'content')}]"
