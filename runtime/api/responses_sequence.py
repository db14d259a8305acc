"""The events of one response in their sequence: each numbered, each item in its place. Pure."""

from typing import Any, NamedTuple

import msgspec

_encode = msgspec.json.Encoder().encode


class Event(NamedTuple):
    """One event of a response: its type, and the JSON object that the client is sent."""

    type: str
    body: bytes


class EventSequence:
    """Makes the events of one response, numbered from `next` on. Made by its stream.

    `output` holds the items that were told of, `stream_id` is echoed in every event.
    """

    __slots__ = ("_echoed", "next", "output")

    def __init__(self, output: list[dict[str, Any]], stream_id: str | None, next: int) -> None:
        self.output = output
        self.next = next
        self._echoed = {} if stream_id is None else {"stream_id": stream_id}

    def event(self, kind: str, **fields: Any) -> Event:
        """The next event, with these fields."""
        return self.numbered({"type": kind, **fields})

    def numbered(self, body: dict[str, Any]) -> Event:
        """The next event, of the type and the fields in `body`, which gets its number."""
        body["sequence_number"] = self.next
        if self._echoed:
            body.update(self._echoed)
        self.next += 1
        return Event(body["type"], _encode(body))

    def add(self, item: dict[str, Any], events: list[Event]) -> int:
        """Put an item at the end of the output, and tell of it. Returns its place."""
        place = len(self.output)
        self.output.append(item)
        events.append(self.event("response.output_item.added", output_index=place, item=item))
        return place

    def done(self, place: int, item: dict[str, Any]) -> Event:
        """The item in that place is whole, or cut off."""
        return self.event("response.output_item.done", output_index=place, item=item)
