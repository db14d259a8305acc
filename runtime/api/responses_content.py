"""What a response says: its message and reasoning items, opened and closed part by part. Pure."""

from typing import Any

from sessile.api.responses_sequence import Event, EventSequence
from sessile.sealed import seal
from sessile.sessions.transcript import item_id

_SPOKEN = {"output_text": "text", "refusal": "refusal", "reasoning_text": "text"}
_DELTA = {
    "output_text": "response.output_text.delta",
    "refusal": "response.refusal.delta",
    "reasoning_text": "response.reasoning_text.delta",
}


class Content:
    """The one item that is open, if any, and its open part. Made by a response's stream.

    `seals`: reasoning items also carry what they say sealed.
    """

    def __init__(self, response: str, sequence: EventSequence, *, seals: bool) -> None:
        self._response = response
        self._sequence = sequence
        self._seals = seals
        self._item: dict[str, Any] | None = None
        self._place = 0
        self._kind = ""  # of its open part
        self._part_index = 0
        self._text: list[str] = []
        self._logprobs: list[dict[str, Any]] = []

    def take_up(self, text: str) -> None:
        """Go on within the one message of the output, of which `text` was told."""
        self._item, self._place = self._sequence.output[0], 0
        self._item |= {"status": "in_progress", "content": []}
        self._kind, self._part_index, self._text = "output_text", 0, [text]

    def speak(
        self,
        kind: str,
        text: str,
        events: list[Event],
        logprobs: list[dict[str, Any]] | None = None,
    ) -> None:
        """More text of that kind."""
        if self._kind != kind:
            self.open_part(kind, events)
        self._text.append(text)
        assert self._item is not None
        event: dict[str, Any] = {
            "type": _DELTA[kind],
            "item_id": self._item["id"],
            "output_index": self._place,
            "content_index": self._part_index,
            "delta": text,
        }
        if kind == "output_text":
            event["logprobs"] = []
            if logprobs:
                told = [_logprob(entry) for entry in logprobs]
                self._logprobs += told
                event["logprobs"] = told
        events.append(self._sequence.numbered(event))

    def open_part(self, kind: str, events: list[Event]) -> None:
        """Open a part of `kind`, in the open item if it may hold one, else in a new one."""
        item_type = "reasoning" if kind == "reasoning_text" else "message"
        self._close_part(events)
        if self._item is not None and self._item["type"] != item_type:
            self._close_item(events, "completed")
        if self._item is None:
            prefix = "rs" if item_type == "reasoning" else "msg"
            item: dict[str, Any] = {
                "type": item_type,
                "id": item_id(prefix, self._response, len(self._sequence.output)),
                "status": "in_progress",
            }
            if item_type == "reasoning":
                item["summary"] = []
            else:
                item["role"] = "assistant"
            item["content"] = []
            self._item, self._place = item, self._sequence.add(item, events)
        self._kind = kind
        self._part_index = len(self._item["content"])
        events.append(self._part_event("response.content_part.added", _part(kind, "", [])))

    def close(self, events: list[Event], status: str) -> None:
        """Close what is open; `status` is the item's if it is the last of the output: one with
        others behind it is whole."""
        self._close_part(events)
        if self._item is not None:
            last = self._place == len(self._sequence.output) - 1
            self._close_item(events, status if last else "completed")

    def _close_part(self, events: list[Event]) -> None:
        kind = self._kind
        if not kind:
            return
        assert self._item is not None
        text = "".join(self._text)
        part = _part(kind, text, self._logprobs)
        done = {_SPOKEN[kind]: text}
        if kind == "output_text":
            done["logprobs"] = self._logprobs  # type: ignore[assignment]
        events.append(
            self._sequence.event(
                _DELTA[kind].replace(".delta", ".done"),
                item_id=self._item["id"],
                output_index=self._place,
                content_index=self._part_index,
                **done,
            )
        )
        events.append(self._part_event("response.content_part.done", part))
        self._item["content"].append(part)
        self._kind, self._text, self._logprobs = "", [], []

    def _close_item(self, events: list[Event], status: str) -> None:
        assert self._item is not None
        item, self._item = self._item, None
        item["status"] = status
        if self._seals and item["type"] == "reasoning":
            item["encrypted_content"] = seal(
                "reasoning", [part["text"] for part in item["content"]]
            )
        events.append(self._sequence.done(self._place, item))

    def _part_event(self, kind: str, part: dict[str, Any]) -> Event:
        assert self._item is not None
        return self._sequence.event(
            kind,
            item_id=self._item["id"],
            output_index=self._place,
            content_index=self._part_index,
            part=part,
        )


def _part(kind: str, text: str, logprobs: list[dict[str, Any]]) -> dict[str, Any]:
    if kind == "output_text":
        return {"type": kind, "text": text, "annotations": [], "logprobs": logprobs}
    return {"type": kind, _SPOKEN[kind]: text}


def _logprob(entry: dict[str, Any]) -> dict[str, Any]:
    """A chat log-probability, with the bytes that the Responses API always gives."""
    tops = entry.get("top_logprobs") or []
    return {**_with_bytes(entry), "top_logprobs": [_with_bytes(top) for top in tops]}


def _with_bytes(entry: dict[str, Any]) -> dict[str, Any]:
    token = entry.get("token") or ""
    given = entry.get("bytes")
    return {
        "token": token,
        "logprob": entry.get("logprob") or 0.0,
        "bytes": list(token.encode("utf-8", "surrogatepass")) if given is None else given,
    }
