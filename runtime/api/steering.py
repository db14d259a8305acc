"""Steers: what a user says to a response that is being made, and what becomes of it. Pure.

A steer goes to a response of its own connection that is active. The response is then stopped where
that is safe, and one that follows it by itself takes the steer in; where it stops for tools of the
client instead, the steer goes with their outputs. Its events are numbered on their own: they are
the connection's, and no part of what a response has said. A response that is detached from its
connection takes its steers in by itself (`responses_steered`), and says which it took.
"""

import secrets
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from itertools import count
from typing import Any, Literal

import msgspec

from sessile.api.responses_items import to_messages
from sessile.errors import InvalidRequest, NotSupported

MOST_PENDING = 8
NOT_STEERABLE = "a response without output, with a conversation or with compaction takes no steer"
_MOST_OF_ALL = 64
_MOST_KNOWN = 1_024
_ITEM_FIELDS = frozenset(("type", "role", "content"))
_FRAME_FIELDS = frozenset(("type", "previous_response_id", "input"))

# What a call of the client's waits for, by its type, and what identifies it there.
_REQUIRED: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "function_call": ("function_call_output", ("call_id", "name")),
    "custom_tool_call": ("custom_tool_call_output", ("call_id",)),
    "mcp_approval_request": ("mcp_approval_response", ("approval_request_id",)),
}
_RESULTS = frozenset(kind for kind, _ in _REQUIRED.values())

Event = dict[str, Any]
Code = Literal[
    "response_not_found", "invalid_input", "steering_not_supported", "too_many_pending_steers",
    "response_already_completed", "response_not_active", "successor_creation_failed",
]  # fmt: skip


class Steer(msgspec.Struct, frozen=True):
    """One that was accepted: its input as it was given and as items, and its size as text. `key` is
    the client's own, under which it is taken once."""

    id: str
    response: str
    given: Any
    items: list[dict[str, Any]]
    size: int
    key: str | None = None

    @property
    def kept_as(self) -> str:
        """What tells it apart from the others of its response."""
        return self.key or self.id


class _Target(msgspec.Struct):
    """A response of this connection: active, waiting for the client's tools with steers queued, or
    over with that status. One that is `detached` runs on without the connection."""

    lane: str | None
    status: str = "active"
    steerable: bool = True
    detached: bool = False
    steers: list[Steer] = []

    @property
    def is_active(self) -> bool:
        """Whether it is being made."""
        return self.status == "active"


class Ending(msgspec.Struct, frozen=True):
    """What the end of a response comes to: events to tell, and the steers that a successor is to
    take in by itself."""

    events: list[Event] = []
    successor: Sequence[Steer] = ()


class Steering:
    """The steers of one connection. `most_bytes` bounds what all that are pending take."""

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._targets: OrderedDict[str, _Target] = OrderedDict()
        self._numbers = count()
        self._pending = 0
        self._bytes = 0

    # -- responses

    def began(
        self, response: str, lane: str | None, frame: Mapping[str, Any], detached: bool = False
    ) -> None:
        """A response of this connection is active from now on, as `frame` asked for it."""
        steerable = is_steerable(frame)
        self._targets[response] = _Target(lane, steerable=steerable, detached=detached)
        if len(self._targets) > _MOST_KNOWN:
            over = (name for name, t in self._targets.items() if not t.steers and not t.is_active)
            if oldest := next(over, None):
                del self._targets[oldest]

    def wants(self, response: str) -> bool:
        """Whether the response is to stop as soon as it can."""
        target = self._targets.get(response)
        return target is not None and bool(target.steers)

    def ended(
        self, response: str, status: str, output: Sequence[Mapping[str, Any]],
        taken: Sequence[str] | None = None,
    ) -> Ending:  # fmt: skip
        """The response has ended so: its steers go on, wait, or come to nothing. `taken` are those
        that its successor took in, if it has one already."""
        target = self._targets[response]
        target.status = status
        if not target.steers:
            return Ending()
        if taken is not None:
            left = [steer for steer in self._take(target) if steer.kept_as not in taken]
            why = f"response {response!r} had ended before"
            return Ending([self.fails(steer, "response_already_completed", why) for steer in left])
        required = _required(output)
        if status == "completed" and required:
            target.status = "waiting"
            return Ending([self._waits(steer, target, required) for steer in target.steers])
        steers = self._take(target)
        if goes_on(status, output):
            return Ending(successor=steers)
        why = f"response {response!r} is {status}: nothing can follow it by itself"
        return Ending([self.fails(steer, "response_not_active", why) for steer in steers])

    # -- steers

    def detached(self, response: str) -> bool:
        """Whether a response of this connection runs on without it."""
        target = self._targets.get(response)
        return target is not None and target.detached

    def steer(
        self, frame: Mapping[str, Any], size: int, key: str | None = None
    ) -> tuple[Event, Steer | None]:
        """Take a `response.steer`, or say why not; the steer, if it is new. Raises `InvalidRequest`
        for one that names no response."""
        name, given = frame.get("previous_response_id"), frame.get("input")
        if not isinstance(name, str) or not name:
            raise InvalidRequest(
                "previous_response_id must be a non-empty string", param="previous_response_id"
            )
        target = self._targets.get(name)

        def fails(code: Code, why: str) -> tuple[Event, None]:
            told = {**_keyed(name, key), "input": given}
            return self._failed(told, code, why, target), None

        if target is None:
            return fails("response_not_found", f"no response {name!r} was made on this connection")
        try:
            items = read_steer(frame)
        except (InvalidRequest, NotSupported) as error:
            return fails("invalid_input", error.message)
        if target.status in ("completed", "waiting"):
            return fails("response_already_completed", f"response {name!r} has completed")
        again = (steer for steer in target.steers if key is not None and steer.key == key)
        if (known := next(again, None)) is not None:
            return self._told("response.steer.accepted", _named(known), target), None
        if not target.is_active:
            return fails("response_not_active", f"response {name!r} is {target.status}")
        if not target.steerable:
            return fails("steering_not_supported", NOT_STEERABLE)
        if len(target.steers) >= MOST_PENDING or self._pending >= _MOST_OF_ALL:
            return fails("too_many_pending_steers", "as many steers as may wait are waiting")
        if self._pending and self._bytes + size > self._most_bytes:
            return fails("too_many_pending_steers", "what waits is as large as it may be")
        steer = Steer(new_steer_id(), name, given, items, size, key)
        self._queue(target, [steer])
        return self._told("response.steer.accepted", _named(steer), target), steer

    def claim(self, parent: object) -> list[Steer]:
        """The steers that wait for the tool outputs of `parent`, for the turn that brings them."""
        target = self._targets.get(parent) if isinstance(parent, str) else None
        if target is None or target.status != "waiting":
            return []
        target.status = "completed"
        return self._take(target)

    def give_back(self, steers: Sequence[Steer]) -> None:
        """The turn that brought the tool outputs never began: its steers wait for the next."""
        for steer in steers:
            target = self._targets.setdefault(steer.response, _Target(None))
            target.status = "waiting"
            self._queue(target, [steer])

    def fails(self, steer: Steer, code: Code, why: str) -> Event:
        """The event that gives an accepted steer back to the client."""
        told = {**_named(steer), "input": steer.given}
        return self._failed(told, code, why, self._targets.get(steer.response))

    # -- inside

    def _queue(self, target: _Target, steers: Sequence[Steer]) -> None:
        target.steers = [*target.steers, *steers]
        self._pending += len(steers)
        self._bytes += sum(steer.size for steer in steers)

    def _take(self, target: _Target) -> list[Steer]:
        steers, target.steers = target.steers, []
        self._pending -= len(steers)
        self._bytes -= sum(steer.size for steer in steers)
        return steers

    def _waits(self, steer: Steer, target: _Target, required: list[Event]) -> Event:
        return self._told(
            "response.steer.pending", _named(steer), target,
            reason="waiting_for_required_input", required_input=required,
        )  # fmt: skip

    def _failed(self, steer: Event, code: Code, why: str, target: _Target | None) -> Event:
        return self._told("response.steer.failed", steer, target, error=error_of(code, why))

    def _told(self, kind: str, steer: Event, target: _Target | None, **more: Any) -> Event:
        event = {"type": kind, "sequence_number": next(self._numbers), "steer": steer, **more}
        if target is not None and target.lane is not None:
            event["stream_id"] = target.lane
        return event


def generates(frame: Mapping[str, Any]) -> bool:
    """Whether a `response.create` asks for output, and not only for a warm cache."""
    options = frame.get("prompt_cache_options")
    prewarm = isinstance(options, dict) and options.get("prewarm") is True
    return not prewarm and frame.get("generate") is not False


def is_steerable(frame: Mapping[str, Any]) -> bool:
    """Whether a response that was asked for so can be followed by another that takes steers in."""
    return not (frame.get("conversation") or frame.get("context_management")) and generates(frame)


def goes_on(status: str, output: Sequence[Mapping[str, Any]]) -> bool:
    """Whether another can follow a response by itself: it has ended, and no tool is owed."""
    return status in ("completed", "incomplete") and not _required(output)


def new_steer_id() -> str:
    """A fresh id of a steer."""
    return "steer_" + secrets.token_hex(12)


def error_of(code: Code, why: str) -> Event:
    """Why a steer failed, as its event says it."""
    return {"type": "invalid_request_error", "code": code, "message": why}


def successor(
    frame: Mapping[str, Any], response: str, items: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """The `response.create` that follows a steered response by itself, with what was said: the
    settings of the one that asked for it."""
    return {**frame, "input": list(items), "previous_response_id": response}


def joined(given: Any, steers: Sequence[Steer]) -> Any:
    """The input of a turn with the steers that waited for it. They come first, but for tool
    outputs: engines want those right behind their calls."""
    said = [item for steer in steers for item in steer.items]
    if not said:
        return given
    if given is None:
        return said
    if isinstance(given, str):
        return [*said, user_message(given)]
    if not isinstance(given, list):
        return given
    after = 0
    for index, item in enumerate(given):
        if isinstance(item, dict) and item.get("type") in _RESULTS:
            after = index + 1
    return [*given[:after], *said, *given[after:]]


def user_message(text: str) -> dict[str, Any]:
    """A text as the item that it stands for."""
    part = {"type": "input_text", "text": text}
    return {"type": "message", "role": "user", "content": [part]}


def _named(steer: Steer) -> Event:
    return {"id": steer.id, **_keyed(steer.response, steer.key)}


def _keyed(response: str, key: str | None) -> Event:
    told = {"previous_response_id": response}
    return told if key is None else {**told, "idempotency_key": key}


def _required(output: Sequence[Mapping[str, Any]]) -> list[Event]:
    """What the client owes: a stub for each call of the output that it has to answer."""
    stubs: list[Event] = []
    for item in output:
        kind, names = _REQUIRED.get(str(item.get("type")), ("", ()))
        if kind:
            found = {name: item.get(name) or item.get("id") for name in names}
            stubs.append({"type": kind, **found})
    return stubs


def read_steer(frame: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The user messages of a steer. Raises `InvalidRequest` or `NotSupported`."""
    for name in frame:
        if name not in _FRAME_FIELDS:
            raise InvalidRequest(f"a steer has no {name}", param=name)
    given = frame.get("input")
    if isinstance(given, str) and given:
        return [user_message(given)]
    if not isinstance(given, list) or not given:
        raise InvalidRequest("input must be a non-empty string or list of user messages")
    items: list[dict[str, Any]] = []
    for index, item in enumerate(given):
        where = f"input[{index}]"
        if not isinstance(item, dict) or item.get("type", "message") != "message":
            raise InvalidRequest(f"{where} must be a message")
        if item.get("role") != "user":
            raise InvalidRequest(f"{where}.role must be user")
        if not item.get("content"):
            raise InvalidRequest(f"{where}.content must not be empty")
        for name in item:
            if name not in _ITEM_FIELDS:
                raise InvalidRequest(f"{where} may hold type, role and content, not {name}")
        items.append({"type": "message", **item})
    to_messages(None, (), items)
    return items
