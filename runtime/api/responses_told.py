"""What the clients of a response have been told so far, read back from its events. Pure.

A response that is taken over goes on from here: only what was told counts, whatever its first
router knew besides.
"""

from collections.abc import Iterable
from typing import Any

import msgspec

_decode = msgspec.json.Decoder(dict[str, Any]).decode
_TEXTS = {
    "response.output_text.delta": "text",
    "response.refusal.delta": "refusal",
    "response.reasoning_text.delta": "text",
}
_CALLS = {
    "response.function_call_arguments.delta": "arguments",
    "response.mcp_call_arguments.delta": "arguments",
    "response.custom_tool_call_input.delta": "input",
}


class SoFar(msgspec.Struct):
    """`created` and `begun`: that `response.created` and `response.in_progress` were told. `output`
    are the items, those that were not closed with what was told of them; `whole` says that the
    numbers from 0 to `next` were all there, `closed` that a part or an item has come to its end."""

    created: bool = False
    begun: bool = False
    output: list[dict[str, Any]] = []
    whole: bool = True
    closed: bool = False
    next: int = 0

    @property
    def text(self) -> str | None:
        """The text in whose middle the response was, if that is all that it had told."""
        if len(self.output) != 1 or self.closed or self.output[0]["type"] != "message":
            return None
        match self.output[0]["content"]:
            case [{"type": "output_text", "text": str(text)}]:
                return text
        return None


def read_told(events: Iterable[bytes]) -> SoFar:
    """The events of one response, in order, as far as they are known."""
    told = SoFar(output=[])
    for body in events:
        event = _decode(body)
        number = event.get("sequence_number", told.next)
        told.whole = told.whole and number == told.next
        told.next = number + 1
        _take(told, event)
    return told


def _take(told: SoFar, event: dict[str, Any]) -> None:
    kind, place = event["type"], event.get("output_index")
    told.closed = told.closed or kind.endswith(".done")
    if kind == "response.created":
        told.created = True
    elif kind == "response.in_progress":
        told.begun = True
    elif kind == "response.output_item.added":
        item = event["item"]
        if "status" in item:
            item["status"] = "incomplete"
        told.output.append(item)
    elif not isinstance(place, int) or place >= len(told.output):
        return  # of an item whose beginning is not known
    elif kind == "response.output_item.done":
        told.output[place] = event["item"]
    elif kind in _CALLS:
        told.output[place][_CALLS[kind]] += event["delta"]
    elif kind == "response.content_part.added":
        told.output[place].setdefault("content", []).append(event["part"])
    elif kind in _TEXTS and told.output[place].get("content"):
        told.output[place]["content"][-1][_TEXTS[kind]] += event["delta"]
