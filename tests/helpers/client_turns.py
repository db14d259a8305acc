"""Turns of the SDK with no socket: what they are told, and the frames that they send."""

from itertools import count
from typing import Any

import msgspec

from sessile.client.turns import Conversation, Turn

_numbers = count()


def add(a: int, b: int) -> int:
    """Add."""
    return a + b


def conversation(**changes: Any) -> Conversation:
    settings: dict[str, Any] = {"system": None, "tools": {}, "max_rounds": 4} | changes
    return Conversation("s1", "m", **settings)


def event(type: str, **fields: Any) -> bytes:
    fields.setdefault("sequence_number", next(_numbers))
    return msgspec.json.encode({"type": type, **fields})


def created(id: str, after: str | None = None) -> bytes:
    return event("response.created", response={"id": id, "previous_response_id": after})


def delta(text: str, **fields: Any) -> bytes:
    return event("response.output_text.delta", delta=text, **fields)


def completed(
    id: str, text: str = "", usage: Any = (10, 2, 8), successor: Any = None, **fields: Any
) -> bytes:
    content = [{"type": "output_text", "text": text, "annotations": []}]
    counts = usage and {
        "input_tokens": usage[0],
        "output_tokens": usage[1],
        "input_tokens_details": {"cached_tokens": usage[2]},
    }
    response = {
        "id": id,
        "status": "completed",
        "output": [{"type": "message", "role": "assistant", "content": content}],
        "usage": counts,
        **fields,
    }
    more = {"successor": successor} if successor else {}
    return event(f"response.{response['status']}", response=response, **more)


def call_item(id: str, name: str = "add", arguments: str = '{"a":1,"b":2}') -> bytes:
    item = {"type": "function_call", "call_id": id, "name": name, "arguments": arguments}
    return event("response.output_item.done", item=item)


def sent(turn: Turn) -> dict[str, Any]:
    frame: dict[str, Any] = msgspec.json.decode(turn.frame())
    return frame
