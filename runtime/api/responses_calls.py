"""The calls that an engine makes, as the items and the events of what they stand for. Pure."""

import re
from typing import Any

import msgspec

from sessile.api.chat_chunks import CallDelta, Function
from sessile.api.responses_sequence import Event, EventSequence
from sessile.api.responses_tools import Called
from sessile.sessions.transcript import item_id

Told = tuple[str, dict[str, Any]]
"""An event: its type and its fields, its sequence number aside."""

_ARGUMENTS = {
    "function_call": "response.function_call_arguments",
    "mcp_call": "response.mcp_call_arguments",
}


class Calls:
    """The calls of one response: those that the engine is making, and those that wait to be run.
    Made by its stream."""

    def __init__(self, response: str, sequence: EventSequence) -> None:
        self._response = response
        self._sequence = sequence
        self._open: dict[int, Call] = {}  # by the engine's index
        self._waiting: list[Call] = []

    def __bool__(self) -> bool:
        """Whether the engine is making one."""
        return bool(self._open)

    @property
    def runs(self) -> bool:
        """Whether the router is to run one of those that the engine is making."""
        return any(call.runs for call in self._open.values())

    def to_run(self) -> list[dict[str, Any]]:
        """The items of those that the router is to run, each to be given to `settle`."""
        return [call.item for call in self._waiting]

    def find(self, delta: CallDelta, position: int) -> "Call | None":
        """The call that a delta goes on with; None: it begins one."""
        call = self._open.get(position if delta.index is None else delta.index)
        function = delta.function
        named = function is not None and bool(function.name)
        if call is not None and named and delta.id and delta.id != call.upstream_id:
            return None  # some engines give every call of a reply the same index
        return call

    def open(self, called: Called, delta: CallDelta, position: int, events: list[Event]) -> "Call":
        """A call of what is `called` begins."""
        index = position if delta.index is None else delta.index
        if index in self._open:
            index = max(self._open) + 1
        make = CustomCall if called.kind == "custom" else Call
        call = make(called, self._response, len(self._sequence.output), delta.id)
        self._open[index] = call
        self._sequence.add(call.item, events)
        self._tell(call.opened(), events)
        return call

    def extend(self, call: "Call", delta: CallDelta, events: list[Event]) -> None:
        """More of a call, its name perhaps."""
        function = delta.function or Function()
        if function.name and not call.item["name"]:
            call.item["name"] = function.name
        if function.arguments:
            self._tell(call.extend(function.arguments), events)

    def close(self, events: list[Event], status: str) -> None:
        """The engine has ended; `status` is the output's last item's, those before it are whole."""
        last = len(self._sequence.output) - 1
        for call in self._open.values():
            self._tell(call.close(status if call.index == last else "completed"), events)
            if call.runs:
                self._waiting.append(call)
            else:
                events.append(self._sequence.done(call.index, call.item))
        self._open = {}

    def settle(self, item: dict[str, Any], events: list[Event]) -> None:
        """A call has been run: `item` holds its output, or its error."""
        call = next(call for call in self._waiting if call.item is item)
        self._waiting.remove(call)
        failed = item["error"] is not None
        kind = "response.mcp_call.failed" if failed else "response.mcp_call.completed"
        events.append(self._sequence.event(kind, item_id=item["id"], output_index=call.index))
        events.append(self._sequence.done(call.index, item))

    def _tell(self, told: list[Told], events: list[Event]) -> None:
        events += [self._sequence.event(kind, **fields) for kind, fields in told]


class Call:
    """A call under way, of a function or of an MCP server's tool. Made by a response's stream, open
    until its engine has ended, so that none can lose a piece."""

    def __init__(self, called: Called, response: str, index: int, upstream_id: str | None) -> None:
        self.called = called
        self.index = index
        self.upstream_id = upstream_id
        self._pieces: list[str] = []
        self.item = self._item(response)

    @property
    def runs(self) -> bool:
        """Whether the router is to run it once it is whole."""
        return self.called.kind == "mcp" and not self.called.asks

    def opened(self) -> list[Told]:
        """What is told when the item has been added."""
        return [("response.mcp_call.in_progress", self._where())] if self.runs else []

    def extend(self, piece: str) -> list[Told]:
        """More of the arguments."""
        self._pieces.append(piece)
        stem = _ARGUMENTS.get(self.item["type"])
        return [] if stem is None else [(stem + ".delta", {**self._where(), "delta": piece})]

    def close(self, status: str) -> list[Told]:
        """The arguments have ended; `status` is the item's."""
        self.item["arguments"] = "".join(self._pieces)
        if not self.called.asks:
            self.item["status"] = "calling" if self.runs and status == "completed" else status
        stem = _ARGUMENTS.get(self.item["type"])
        told = {**self._where(), "arguments": self.item["arguments"]}
        return [] if stem is None else [(stem + ".done", told)]

    def _where(self) -> dict[str, Any]:
        return {"item_id": self.item["id"], "output_index": self.index}

    def _item(self, response: str) -> dict[str, Any]:
        called = self.called
        if called.kind == "function":
            return {
                "type": "function_call",
                "id": item_id("fc", response, self.index),
                "call_id": self.upstream_id or item_id("call", response, self.index),
                "name": called.name,
                "arguments": "",
                "status": "in_progress",
            }
        if called.asks:
            return {
                "type": "mcp_approval_request",
                "id": item_id("mcpr", response, self.index),
                "server_label": called.server,
                "name": called.name,
                "arguments": "",
            }
        return {**mcp_call(item_id("mcp", response, self.index), called.server, called.name),
                "status": "in_progress"}  # fmt: skip


class CustomCall(Call):
    """A call of a custom tool: the one string in its arguments is its input."""

    def __init__(self, called: Called, response: str, index: int, upstream_id: str | None) -> None:
        super().__init__(called, response, index, upstream_id)
        self._text = _StringOf("input")

    def extend(self, piece: str) -> list[Told]:
        self._pieces.append(piece)
        text = self._text.feed(piece)
        return [self._delta(text)] if text else []

    def close(self, status: str) -> list[Told]:
        whole = custom_input("".join(self._pieces))
        rest = whole.removeprefix(self._text.told)
        self.item["input"], self.item["status"] = whole, status
        told = [self._delta(rest)] if rest and whole != rest or not self._text.told else []
        done = {**self._where(), "input": whole}
        return [*told, ("response.custom_tool_call_input.done", done)]

    def _delta(self, text: str) -> Told:
        return "response.custom_tool_call_input.delta", {**self._where(), "delta": text}

    def _item(self, response: str) -> dict[str, Any]:
        return {
            "type": "custom_tool_call",
            "id": item_id("ctc", response, self.index),
            "call_id": self.upstream_id or item_id("call", response, self.index),
            "name": self.called.name,
            "input": "",
            "status": "in_progress",
        }


class _StringOf:
    """The string under one name of a JSON object that comes in pieces, decoded as it comes."""

    _WHOLE = re.compile(  # characters and escapes, none of them cut in two
        r'(?:[^"\\]|\\u(?![dD][89a-fA-F])[0-9a-fA-F]{4}'
        r"|\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|\\[^u])*"
    )

    def __init__(self, name: str) -> None:
        self._start = re.compile(rf'\s*{{\s*"{name}"\s*:\s*"')
        self._raw = ""
        self._begun = False
        self.told = ""

    def feed(self, piece: str) -> str:
        """What more of the string is known now."""
        self._raw += piece
        if not self._begun:
            start = self._start.match(self._raw)
            if start is None:
                return ""
            self._begun = True
            self._raw = self._raw[start.end() :]
        found = self._WHOLE.match(self._raw)
        assert found is not None  # it matches the empty string
        try:
            text: str = msgspec.json.decode(f'"{found[0]}"')
        except msgspec.DecodeError:  # a line break that is not escaped, say: `close` tells it all
            return ""
        self._raw = self._raw[found.end() :]
        self.told += text
        return text


def custom_input(arguments: str) -> str:
    """The input in a custom tool's arguments; a model that wrote something else meant all of it."""
    try:
        found = msgspec.json.decode(arguments)
    except msgspec.DecodeError:
        return arguments
    if isinstance(found, dict) and isinstance(found.get("input"), str):
        return str(found["input"])
    return found if isinstance(found, str) else arguments


def mcp_call(id: str, server: str, name: str, arguments: str = "") -> dict[str, Any]:
    """An `mcp_call` item that has not been run."""
    return {
        "type": "mcp_call",
        "id": id,
        "server_label": server,
        "name": name,
        "arguments": arguments,
        "approval_request_id": None,
        "output": None,
        "error": None,
    }
