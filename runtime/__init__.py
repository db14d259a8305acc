"""Sessile: the serving runtime for agents. What is named here is the SDK.

The names are loaded when they are first used, so that a replica's own process, which imports a
part of the package, does not also pay for a WebSocket and an HTTP client.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sessile.client import AsyncClient as AsyncClient
    from sessile.client import AsyncReply as AsyncReply
    from sessile.client import AsyncRun as AsyncRun
    from sessile.client import AsyncSession as AsyncSession
    from sessile.client import Client as Client
    from sessile.client import Done as Done
    from sessile.client import Receipt as Receipt
    from sessile.client import Reply as Reply
    from sessile.client import Run as Run
    from sessile.client import Session as Session
    from sessile.client import TextDelta as TextDelta
    from sessile.client import ToolCall as ToolCall
    from sessile.client import ToolResult as ToolResult
    from sessile.client import Usage as Usage
    from sessile.errors import SessileError as SessileError

_SDK = (
    "AsyncClient", "AsyncReply", "AsyncRun", "AsyncSession", "Client", "Done", "Receipt", "Reply",
    "Run", "Session", "TextDelta", "ToolCall", "ToolResult", "Usage",
)  # fmt: skip

__all__ = [*_SDK, "SessileError"]


def __getattr__(name: str) -> Any:
    if name in _SDK:
        return getattr(import_module("sessile.client"), name)
    if name == "SessileError":
        return import_module("sessile.errors").SessileError
    raise AttributeError(f"module 'sessile' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
