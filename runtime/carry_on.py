"""How an answer goes on at another replica when its own is lost in the middle of it. Pure.

What the client has been told is read back from the bytes that it was sent (`read_told`); `decide`
says what can be done from there, and `Seam` makes the events of the other replica's answer those
of the same stream. How an engine is asked to go on with a text is its adapter's to say.
"""

from collections.abc import Mapping
from typing import Any, Literal

import msgspec

from sessile.relay import read_data

_encode = msgspec.json.encode

_CHAT = "/v1/chat/completions"
_COMPLETIONS = "/v1/completions"
_NAMES = ("id", "object", "created", "model", "system_fingerprint")
_LIMITS = ("max_tokens", "max_completion_tokens", "n_predict")
# What holds an engine to a form, or counts what it was given: text that is handed back as part of
# the prompt would be judged anew, or not at all.
_CONSTRAINTS = (
    "logprobs", "top_logprobs", "prompt_logprobs", "echo", "suffix", "regex", "ebnf", "grammar",
    "json_schema", "structured_outputs", "guided_json", "guided_regex", "guided_choice",
    "guided_grammar", "structural_tag", "functions", "audio",
)  # fmt: skip
_HELD = (b'{"error"', b'"abort"')

Action = Literal["continue", "restart", "finish", "fail"]


class Told(msgspec.Struct, frozen=True, kw_only=True):
    """What the client of an answer has been told.

    `text` is that of its one choice, in `pieces` events; `begun` that a first event has come;
    `other` is what there was beside text, `finish` the finish reason. `head` are the fields that
    name the answer, `counted` says that it has had its usage. `data` are the events themselves,
    without one by which the engine told of its failure and all after it.
    """

    text: str = ""
    pieces: int = 0
    begun: bool = False
    other: str | None = None
    finish: str | None = None
    counted: bool = False
    head: Mapping[str, Any] = {}
    data: bytes = b""


class Plan(msgspec.Struct, frozen=True):
    """What to do: `continue` from the text, `restart` from nothing, `finish` since only the last
    events are missing, or `fail`; `why` says why it cannot be continued."""

    action: Action
    why: str = ""


def may_break(data: bytes) -> bool:
    """Whether to look closer at these events: cheap, and true of few that are well."""
    return _HELD[0] in data or _HELD[1] in data


def failure(event: bytes) -> str | None:
    """Why the engine gave up, if that is what this event tells: an error of its own (5xx), or a
    finish that nobody asked for."""
    body = read_data(event)
    if body is None:
        return None
    error = body.get("error")
    if error is not None:
        code = error.get("code") if isinstance(error, dict) else None
        if isinstance(code, int) and 400 <= code < 500:
            return None  # the request is at fault: it would fail elsewhere, too
        said = error.get("message") if isinstance(error, dict) else error
        return said if isinstance(said, str) and said else "it did not say why"
    for choice in body.get("choices") or ():
        if choice.get("finish_reason") == "abort":
            return "it aborted the request"
    return None


def split(data: bytes) -> list[bytes]:
    """Whole events, each with the empty line that ends it; a part of one at the end is dropped."""
    found: list[bytes] = []
    start = 0
    while True:
        end = data.find(b"\n\n", start)
        crlf = data.find(b"\n\r\n", start)
        if end < 0 and crlf < 0:
            return found
        stop = crlf + 3 if end < 0 or 0 <= crlf < end else end + 2
        found.append(data[start:stop])
        start = stop


def read_told(stream: bytes) -> Told:
    """What these events have told, up to the first by which the engine says that it failed."""
    text: list[str] = []
    kept: list[bytes] = []
    head: dict[str, Any] = {}
    begun = counted = False
    other = finish = None
    for event in split(stream):
        if may_break(event) and failure(event) is not None:
            break
        kept.append(event)
        body = read_data(event)
        if body is None:
            continue
        begun = True
        head = head or {name: body[name] for name in _NAMES if name in body}
        counted = counted or isinstance(body.get("usage"), dict) and body.get("choices") == []
        for choice in body.get("choices") or ():
            finish = choice.get("finish_reason") or finish
            if choice.get("index", 0) != 0:
                other = other or "several choices"
            delta = choice.get("delta") or {}
            said = choice.get("text") or delta.get("content")
            if isinstance(said, str) and said:
                text.append(said)
            strange = [k for k, v in delta.items() if v and k not in ("role", "content")]
            if strange:
                other = other or strange[0]
    return Told(
        text="".join(text), pieces=len(text), begun=begun, other=other, finish=finish,
        counted=counted, head=head, data=b"".join(kept),
    )  # fmt: skip


def decide(
    path: str, document: Mapping[str, Any], told: Told, *, able: bool = True, sent: bool = True
) -> Plan:
    """The cases, in order:

    1. the answer has its finish reason: what is missing is only how it was counted
    2. no more than its beginning was told: begin again
    3. it can go on from its text, at an engine that is `able` to: go on
    4. nothing of it was `sent` to the client: begin again
    5. else it fails
    """
    if told.finish is not None:
        return Plan("finish")
    if not told.text and told.other is None:
        return Plan("restart")
    why = _obstacle(path, document, told)
    if why is None and not able:
        why = "its engine cannot go on with an answer that was begun elsewhere"
    if why is None:
        return Plan("continue")
    return Plan("fail", why) if sent else Plan("restart")


def _obstacle(path: str, document: Mapping[str, Any], told: Told) -> str | None:
    """Why the answer cannot go on from its text, if so."""
    if told.other is not None:
        return f"it was in the middle of {told.other}"
    for name in _CONSTRAINTS:
        if document.get(name) not in (None, False, 0):
            return f"{name} was asked for"
    if (document.get("n") or 1) != 1 or (document.get("best_of") or 1) != 1:
        return "several choices were asked for"
    form = document.get("response_format")
    if form is not None and not (isinstance(form, dict) and form.get("type") == "text"):
        return "response_format was asked for"
    if document.get("tool_choice") not in (None, "auto", "none"):
        return "tool_choice was asked for"
    if path == _COMPLETIONS:
        return None if isinstance(document.get("prompt"), str) else "its prompt is not one text"
    if path != _CHAT:
        return f"{path} has no text to go on from"
    messages = document["messages"]
    for message in messages:
        content = message.get("content")
        if isinstance(content, list) and any(part.get("type") != "text" for part in content):
            return "its prompt is more than text"
    last = messages[-1]
    if last.get("role") == "assistant" and (
        document.get("continue_final_message") is not True or not isinstance(last["content"], str)
    ):
        return "its prompt ends with a reply"
    return None


def with_text(document: Mapping[str, Any], text: str) -> list[dict[str, Any]]:
    """The messages of a chat request and `text` as the reply that is under way."""
    messages = list(document["messages"])
    if messages[-1].get("role") == "assistant":
        text = messages.pop()["content"] + text
    return [*messages, {"role": "assistant", "content": text}]


def parted(text: str) -> tuple[str, str]:
    """The text that an engine is given, and the white space at its end. Templates trim that, and
    models write it as the beginning of the next word: they are to write it again."""
    given = text.rstrip()
    return given, text[len(given) :]


def room(document: Mapping[str, Any]) -> int | None:
    """How many tokens the answer may have; None: as many as fit."""
    limits = [n for name in _LIMITS if isinstance(n := document.get(name), int) and n > 0]
    return min(limits, default=None)


def shortened(document: Mapping[str, Any], tokens: int) -> dict[str, Any]:
    """The request with `tokens` less to make, one at the least."""
    less = {
        name: max(1, value - tokens)
        for name in _LIMITS
        if isinstance(value := document.get(name), int) and value > 0
    }
    least = document.get("min_tokens")
    if isinstance(least, int) and least > 0:
        less["min_tokens"] = max(0, least - tokens)
    return {**document, **less}


def ending(told: Told, path: str, finish: str | None, usage: Mapping[str, Any] | None) -> bytes:
    """The last events of an answer of which all has been said: its finish reason, unless that is
    None, its usage, unless that is, and `[DONE]`."""
    said: list[bytes] = []
    if finish is not None:
        part: dict[str, Any] = {"delta": {}} if path == _CHAT else {"text": ""}
        choice = {"index": 0, **part, "finish_reason": finish}
        said.append(_event({**told.head, "choices": [choice]}))
    if usage is not None:
        said.append(_event({**told.head, "choices": [], "usage": usage}))
    return b"".join([*said, b"data: [DONE]\n\n"])


def beginning(path: str, text: str) -> bytes:
    """An event that tells all of `text`: what a client was told elsewhere."""
    part: dict[str, Any] = {"text": text}
    if path == _CHAT:
        part = {"delta": {"role": "assistant", "content": text}}
    return _event({"choices": [{"index": 0, **part, "finish_reason": None}]})


def marker(replica: str) -> bytes:
    """The comment in a stream that tells where it goes on; SSE clients skip it."""
    return b": continued on replica=%b\n\n" % replica.encode("ascii", "backslashreplace")


def read_marker(data: bytes) -> str | None:
    """The replica, if this is a marker; it always comes alone."""
    if not data.startswith(b": continued on replica="):
        return None
    return data.partition(b"=")[2].strip().decode("ascii", "replace")


class Seam:
    """Makes an engine's stream the rest of another. One for each time an answer goes on.

    `owed` is white space that was told and will come again, `tokens` how much of the prompt is
    the answer's own; text completions become chat chunks where `path` is that of chat.
    """

    def __init__(self, told: Told, path: str, *, owed: str = "", tokens: int = 0) -> None:
        self._head = told.head
        self._begun = told.begun
        self._chat = path == _CHAT
        self._owed = owed
        self._tokens = tokens
        self._tail = b""

    def feed(self, data: bytes) -> bytes:
        """The events that are now whole, as those of the one stream; perhaps none."""
        self._tail += data
        events = split(self._tail)
        self._tail = self._tail[sum(map(len, events)) :]
        return b"".join([self._join(event) for event in events])

    def _join(self, event: bytes) -> bytes:
        body = read_data(event)
        if body is None or "error" in body:
            return event
        choices = body.get("choices") or []
        kept = [choice for choice in choices if self._choose(choice)]
        if choices and not kept and not isinstance(body.get("usage"), dict):
            return b""
        if isinstance(body.get("usage"), dict):
            body["usage"] = self._count(body["usage"])
        body |= {"choices": kept, **self._head}
        return _event(body)

    def _choose(self, choice: dict[str, Any]) -> bool:
        """Turn a choice into what it is in the one stream; whether anything is left of it."""
        if self._chat and "delta" not in choice:
            choice["delta"] = {"content": choice.pop("text", "")}
            choice.pop("logprobs", None)
        part = choice["delta"] if self._chat else choice
        name = "content" if self._chat else "text"
        said = part.get(name)
        if isinstance(said, str) and said and self._owed:
            part[name] = self._pay(said)
        if not self._begun:
            return True
        part.pop("role", None)
        left = any(value for key, value in part.items() if key not in ("index", "finish_reason"))
        return left or choice.get("finish_reason") is not None

    def _pay(self, said: str) -> str:
        """Without what was owed of it; what does not come again is owed no longer."""
        same = 0
        while same < min(len(said), len(self._owed)) and said[same] == self._owed[same]:
            same += 1
        self._owed = self._owed[same:] if same == len(said) else ""
        return said[same:]

    def _count(self, usage: dict[str, Any]) -> dict[str, Any]:
        """The prompt as it was at first, and all that was made since; their sum stays."""
        prompt, made = usage.get("prompt_tokens"), usage.get("completion_tokens")
        if not isinstance(prompt, int) or not self._tokens:
            return usage
        own = min(self._tokens, prompt)
        counted = {**usage, "prompt_tokens": prompt - own}
        if isinstance(made, int):
            counted["completion_tokens"] = made + own
        details = usage.get("prompt_tokens_details")
        if isinstance(details, dict) and isinstance(cached := details.get("cached_tokens"), int):
            details = {**details, "cached_tokens": min(cached, prompt - own)}
            counted["prompt_tokens_details"] = details
        return counted


def _event(body: Mapping[str, Any]) -> bytes:
    return b"data: " + _encode(body) + b"\n\n"
