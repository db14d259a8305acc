"""The SDK: a client, its sessions, and the events of a turn; nothing of the server."""

from sessile.client.async_client import AsyncClient, AsyncReply, AsyncSession
from sessile.client.events import Done, Reply, TextDelta, ToolCall, ToolResult
from sessile.client.sync_client import Client, Session
from sessile.router.replica import Usage
from sessile.sessions.record import Receipt

__all__ = [
    "AsyncClient",
    "AsyncReply",
    "AsyncSession",
    "Client",
    "Done",
    "Receipt",
    "Reply",
    "Session",
    "TextDelta",
    "ToolCall",
    "ToolResult",
    "Usage",
]
