"""What the lab's servers hear and say over ASGI, in words of their own."""

from typing import Any

import msgspec
from starlette.types import Receive, Send

JSON, EVENTS = b"application/json", b"text/event-stream"


async def read_body(receive: Receive) -> bytes:
    """A request's whole body; what came of it, from a client that hangs up before its end."""
    body = bytearray()
    more = True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
    return bytes(body)


async def hung_up(receive: Receive) -> None:
    """Returns once the client is gone."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def start(send: Send, status: int = 200, content_type: bytes = JSON) -> None:
    """Send an answer's head."""
    headers = [(b"content-type", content_type)]
    await send({"type": "http.response.start", "status": status, "headers": headers})


async def write(send: Send, data: bytes) -> None:
    """Send a part of an answer that is followed by others."""
    await send({"type": "http.response.body", "body": data, "more_body": True})


async def finish(send: Send, data: bytes = b"") -> None:
    """Send the last part of an answer."""
    await send({"type": "http.response.body", "body": data})


async def answer(send: Send, status: int, body: Any) -> None:
    """Send a whole answer of JSON."""
    await start(send, status)
    await finish(send, msgspec.json.encode(body))


def event(data: Any) -> bytes:
    """JSON as a server-sent event."""
    return b"data: " + msgspec.json.encode(data) + b"\n\n"
