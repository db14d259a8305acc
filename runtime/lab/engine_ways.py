"""The ways to give an SGLang the next turn of a conversation, for `engine_sessions`: the whole
chat, the whole prompt as token ids, or only the new ids, to a session that the engine keeps.
"""

import json
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, Protocol

import httpx2
import msgspec

from sessile.errors import ReplicaRefused, StreamBroken

_CAPACITY = 10_000_000  # of a session; the engine wants a number and heeds none


class Said(msgspec.Struct, frozen=True):
    """What came of one turn; `ids` are those that the engine tells, none of a chat."""

    text: str
    ids: list[int]
    ttft_s: float | None
    prompt_tokens: int
    cached_tokens: int


class Way(Protocol):
    """One conversation, given in one way; `how` names it."""

    how: str

    async def turn(self, words: str, new: Sequence[int]) -> Said:
        """Give what the user says next, as words and as the ids that follow the last answer."""
        ...

    async def aclose(self) -> None:
        """The conversation is over."""
        ...


# -- ids


def after_answer(one: Sequence[int], other: Sequence[int]) -> list[int]:
    """What follows an answer, of two prompts that differ in nothing but that answer."""
    size = 0
    while size < min(len(one), len(other)) and one[-1 - size] == other[-1 - size]:
        size += 1
    return list(one[len(one) - size :])


def appended(held: Sequence[int], new: Sequence[int]) -> list[int]:
    """What is to be put behind `held`: an answer that ended by itself has the token that ends it,
    and needs no other."""
    return list(new[1:] if held and new and held[-1] == new[0] else new)


# -- the engine


class Engine:
    """One SGLang. What it refuses is raised, also where it says so in a stream that it has begun
    with a 200, as it does of a session that it does not know. `clock` gives the seconds, of time or
    of what else is to be measured to the first text."""

    def __init__(
        self, http: httpx2.AsyncClient, model: str, output_tokens: int,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:  # fmt: skip
        self._http = http
        self._model = model
        self._output_tokens = output_tokens
        self._clock = clock

    async def ids(self, messages: list[Any]) -> list[int]:
        """A chat's prompt, as the engine would make it."""
        body = {"model": self._model, "messages": messages}
        return list((await self.post("/tokenize", body))["tokens"])

    async def post(self, path: str, body: dict[str, Any]) -> Any:
        """Ask, and get its answer of JSON, None for none."""
        reply = await self._http.post(path, json=body)
        if reply.status_code >= 400:
            raise _refused(reply.content)
        return json.loads(reply.content) if reply.content else None

    async def chat(self, messages: list[Any], space: str) -> Said:
        """A turn of `/v1/chat/completions`; `space` is what shares no cache with another."""
        body = {
            "model": self._model, "messages": messages, "max_tokens": self._output_tokens,
            "temperature": 0, "extra_key": space, "stream": True,
            "stream_options": {"include_usage": True},
        }  # fmt: skip
        text, ttft_s, usage, began = "", None, None, self._clock()
        async for told in self._stream("/v1/chat/completions", body):
            for choice in told["choices"]:
                text += choice["delta"].get("content") or ""
            if ttft_s is None and text:
                ttft_s = self._clock() - began
            usage = told.get("usage") or usage
        if usage is None:
            raise StreamBroken("the stream ended before its usage")
        cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
        return Said(text, [], ttft_s, usage["prompt_tokens"], cached)

    async def generate(self, fields: dict[str, Any], space: str) -> Said:
        """A turn of `/generate`, which tells all of its answer in each event."""
        sampling = {"max_new_tokens": self._output_tokens, "temperature": 0}
        body = {"sampling_params": sampling, "extra_key": space, "stream": True, **fields}
        ttft_s, told, began = None, None, self._clock()
        async for told in self._stream("/generate", body):
            finish = told["meta_info"].get("finish_reason") or {}
            if finish.get("type") == "abort":
                raise ReplicaRefused(str(finish.get("message")))
            if ttft_s is None and told["text"]:
                ttft_s = self._clock() - began
        if told is None:
            raise StreamBroken("the stream ended before its answer")
        about = told["meta_info"]
        return Said(
            told["text"], told["output_ids"], ttft_s, about["prompt_tokens"],
            about.get("cached_tokens") or 0,
        )  # fmt: skip

    async def _stream(self, path: str, body: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
        async with self._http.stream("POST", path, json=body) as reply:
            if reply.status_code >= 400:
                raise _refused(await reply.aread())
            async for line in reply.aiter_lines():
                if line.startswith("data: ") and line != "data: [DONE]":
                    told = json.loads(line[6:])
                    if "error" in told:
                        raise _refused(line[6:])
                    yield told


def _refused(body: str | bytes) -> ReplicaRefused:
    try:
        return ReplicaRefused(str(json.loads(body)["error"]["message"]))
    except (ValueError, TypeError, KeyError):
        return ReplicaRefused(f"the engine said {body[:200]!r}")


# -- the ways


class WholeChat:
    """Each turn gives all messages, as Sessile does."""

    how = "chat"

    def __init__(self, engine: Engine, space: str, system: str) -> None:
        self._engine = engine
        self._space = space
        self._messages = [{"role": "system", "content": system}]

    async def turn(self, words: str, new: Sequence[int]) -> Said:
        """Run one turn."""
        self._messages.append({"role": "user", "content": words})
        said = await self._engine.chat(self._messages, self._space)
        self._messages.append({"role": "assistant", "content": said.text})
        return said

    async def aclose(self) -> None:
        """The engine keeps nothing of it but its cache."""


class WholeIds:
    """Each turn gives all ids, the answers' as the engine told them."""

    how = "ids"

    def __init__(self, engine: Engine, space: str) -> None:
        self._engine = engine
        self._space = space
        self._held: list[int] = []

    async def turn(self, words: str, new: Sequence[int]) -> Said:
        """Run one turn."""
        self._held += appended(self._held, new)
        said = await self._engine.generate({"input_ids": self._held}, self._space)
        self._held += said.ids
        return said

    async def aclose(self) -> None:
        """The engine keeps nothing of it but its cache."""


class NewIds:
    """Each turn gives its new ids, to a session of the engine's. One that is `streaming` also
    keeps its memory there until it is closed, and hears of no turn but the last."""

    def __init__(self, engine: Engine, space: str, *, streaming: bool) -> None:
        self.how = "streaming" if streaming else "session"
        self._engine = engine
        self._space = space
        self._streaming = streaming
        self._last: list[int] = []
        self._turns = 0

    async def turn(self, words: str, new: Sequence[int]) -> Said:
        """Run one turn; the first opens the session."""
        session: dict[str, Any] = {"id": self._space}
        if self._turns:
            session["rid"] = self._rid()
        else:
            asked = {"session_id": self._space, "capacity_of_str_len": _CAPACITY}
            await self._engine.post("/open_session", asked | {"streaming": self._streaming})
        self._turns += 1
        fields = {"rid": self._rid(), "input_ids": appended(self._last, new)}
        said = await self._engine.generate({**fields, "session_params": session}, self._space)
        self._last = said.ids
        return said

    def _rid(self) -> str:
        return f"{self._space}-{self._turns}"

    async def aclose(self) -> None:
        """Have the engine forget the session."""
        if self._turns:
            await self._engine.post("/close_session", {"session_id": self._space})
