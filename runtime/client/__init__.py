"""The SDK: a client, its sessions, and the events of a turn; nothing of the server."""

from sessile.client.async_client import AsyncClient
from sessile.client.async_run import AsyncReply, AsyncRun
from sessile.client.async_session import AsyncSession
from sessile.client.events import Done, Reply, TextDelta, ToolCall, ToolResult
from sessile.client.sync_client import Client
from sessile.client.sync_run import Run
from sessile.client.sync_session import Session
from sessile.router.engine import Usage
from sessile.sessions.record import Receipt

__all__ = [
    "AsyncClient",
    "AsyncReply",
    "AsyncRun",
    "AsyncSession",
    "Client",
    "Done",
    "Receipt",
    "Reply",
    "Run",
    "Session",
    "TextDelta",
    "ToolCall",
    "ToolResult",
    "Usage",
]
