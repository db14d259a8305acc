"""Conversations with one engine or router for the speculation benchmark: what each turn met, and
how far the engine says it came with each step.

Speed is taken from the first piece of text to the last, so that the prompt's share stays out of
it. The counts are the engine's own.
"""

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

import msgspec

from sessile.engines.base import document
from sessile.engines.samples import Samples
from sessile.errors import ReplicaError, ReplicaRefused, SettingsError
from sessile.lab import speculation_watch
from sessile.lab.speculation_texts import Script
from sessile.lab.speculation_watch import Watch
from sessile.relay import UsageRelay, events
from sessile.router.connection import Timeouts
from sessile.router.engine import Call
from sessile.router.upstream import Upstream

_TIMEOUTS = Timeouts(connect_s=10.0, first_byte_s=600.0, idle_s=300.0)
_CALL_S = 20.0
_REPLICAS = "/sessile/v1/replicas"
_VERIFIED = "sglang:spec_verify_calls_total"
_ACCEPTED = "vllm:spec_decode_num_accepted_tokens_total"


class Turn(msgspec.Struct, frozen=True, kw_only=True):
    """One answer. `accepted_tokens` is what llama.cpp tells of its drafts, None elsewhere."""

    text: str
    replica: str
    ttft_s: float
    decode_s: float
    tokens: int
    accepted_tokens: int | None


class Pass(msgspec.Struct, frozen=True, kw_only=True):
    """Conversations of one kind at one server, `batch` of them at once.

    `decode_tok_s` is a stream's mean speed times the batch, `whole_tok_s` all tokens by the time
    that all of it took, prompts too. `acceptance` is tokens a step of a sequence, None where the
    engine does not tell; `turns_at` counts the turns of each replica of a router, under the name of
    its side where it is one of the engines that are measured by themselves. `turn_tok_s` is
    the speed of the first turns, of the second ones, and so on: a router knows a session better.
    """

    side: str
    kind: str
    batch: int
    round: int
    decode_tok_s: float
    whole_tok_s: float
    tpot_p50_s: float
    ttft_p50_s: float
    acceptance: float | None
    turns_at: dict[str, int]
    turn_tok_s: list[float]


class Side:
    """One server under test: `off`, `on` or `auto`, an engine or a router. Lives as long as the
    benchmark. `engines` are the sides of the engines that a router may have, by URL. With `pids`,
    by the URLs of engines, time is what these compute, where others compute on the same cores."""

    def __init__(
        self, name: str, url: str, key: str, model: str | None = None,
        pids: Mapping[str, int] | None = None, engines: Mapping[str, str] | None = None,
    ) -> None:  # fmt: skip
        self.name = name
        self.model = model or ""
        self.sides: dict[str, str] = {}
        """Which replica is which side, by id, once they are found; empty of an engine."""
        self._engines = {_plain(url): side for url, side in (engines or {}).items()}
        self._pids = pids or {}
        self._timed: dict[str, int] = {}  # by replica, once they are found
        self._url = _plain(url)
        self._upstream = Upstream(self._url, _TIMEOUTS)
        self._headers = ((b"authorization", b"Bearer " + key.encode()),)

    async def find(self) -> None:
        """See that it answers, and take the first model that it serves unless one was named.
        Raises `SettingsError`."""
        try:
            reply = await self._upstream.call(Call("GET", "/v1/models"), _CALL_S)
            models = [card["id"] for card in document(reply, "/v1/models")["data"]]
            self.model = self.model or models[0]
        except (ReplicaError, KeyError, IndexError, TypeError) as error:
            raise SettingsError(
                f"--{self.name} {self._url}: no OpenAI-compatible server with a model answers "
                f"there ({error}); start it first, or give the URL of one that runs"
            ) from error
        try:
            reply = await self._upstream.call(Call("GET", _REPLICAS), _CALL_S, self._headers)
            listed = document(reply, _REPLICAS)["replicas"]
            urls = {each["id"]: _plain(each["url"]) for each in listed}
        except (ReplicaError, KeyError, TypeError):
            urls = {}  # an engine
        self.sides = {
            replica: self._engines[url] for replica, url in urls.items() if url in self._engines
        }
        if self._pids:
            self._timed = self._find_timed(urls)

    def _find_timed(self, urls: Mapping[str, str]) -> dict[str, int]:
        """The processes to be timed, by the ids of their replicas; an engine itself has none."""
        pids = {_plain(url): pid for url, pid in self._pids.items()}
        if self._url in pids:
            urls = {"": self._url}
        elif not urls:
            raise SettingsError(f"--pids: there is none of {self._url}, and it is no router")
        if missing := sorted(set(urls.values()) - set(pids)):
            raise SettingsError(f"--pids: there is none of {missing[0]}; add {missing[0]}=PID")
        return {replica: pids[url] for replica, url in urls.items()}

    async def aclose(self) -> None:
        await self._upstream.aclose()

    @property
    def by_clock(self) -> bool:
        """Whether the time that passes counts, not what is computed."""
        return not self._timed

    def watch(self) -> Watch:
        """Started now."""
        return speculation_watch.start(self._timed)

    async def counters(self) -> dict[str, float]:
        """What its metrics count of speculation; empty where it has none."""
        try:
            reply = await self._upstream.call(Call("GET", "/metrics"), _CALL_S)
            samples = Samples(reply, "/metrics", (_VERIFIED, _ACCEPTED))
        except ReplicaError:
            return {}
        found = {name: samples.total(name) for name in (_VERIFIED, _ACCEPTED)}
        return {name: value for name, value in found.items() if value is not None}

    async def ask(
        self, messages: Sequence[Any], session: str, tokens: int, *, final: bool = False
    ) -> Turn:
        """One streamed turn; one that is its session's `final` one says so, for nothing is to be
        held for those that are over. Raises `ReplicaError` with the server's own words."""
        body = msgspec.json.encode(
            {
                "model": self.model, "messages": messages, "max_tokens": tokens, "temperature": 0,
                "ignore_eos": True, "stream": True, "stream_options": {"include_usage": True},
            }
        )  # fmt: skip
        headers = [*self._headers, (b"x-session-id", session.encode())]
        if final:
            headers.append((b"x-dynamo-session-final", b"true"))
        relay = UsageRelay(relay_usage=True)
        pieces: list[str] = []
        timings: dict[str, Any] | None = None
        watch = self.watch()
        first = last = 0.0
        async with await self._upstream.open(
            "POST", "/v1/chat/completions", body, headers
        ) as response:
            if response.status != 200:
                said = b"".join([chunk async for chunk in response])[:300]
                raise self._refused(f"{response.status} {said.decode('utf-8', 'replace')}")
            replica = response.headers.get(b"x-sessile-replica", b"").decode()
            async for chunk in response:
                now = watch(replica)
                for event in events(relay.feed(chunk)):
                    if event.get("error"):
                        raise self._refused(str(event["error"]))
                    timings = event.get("timings") or timings
                    if piece := _piece(event):
                        pieces.append(piece)
                        first, last = first or now, now
        usage = (relay.usage_body or {}).get("usage")
        if not usage or not pieces:
            raise self._refused("an answer without text, or without the usage that was asked for")
        return Turn(
            text="".join(pieces),
            replica=self.sides.get(replica, replica),
            ttft_s=first,
            decode_s=last - first,
            tokens=usage["completion_tokens"],
            accepted_tokens=timings.get("draft_n_accepted", 0) if timings else None,
        )

    def _refused(self, said: str) -> ReplicaRefused:
        return ReplicaRefused(f"--{self.name} {self._url} failed a turn: {said}")


def _plain(url: str) -> str:
    return url.rstrip("/").removesuffix("/v1")


def _piece(event: Mapping[str, Any]) -> str:
    choices = event.get("choices")
    return (choices[0].get("delta") or {}).get("content") or "" if choices else ""


async def converse(side: Side, script: Script, session: str, tokens: int) -> list[Turn]:
    """One conversation, each turn asked once the last one is answered; what was answered goes into
    the next prompt, unless the script says what is to stand there."""
    messages: list[Any] = list(script.before)
    turns: list[Turn] = []
    for words in script.asked:
        messages.append({"role": "user", "content": words})
        final = len(turns) + 1 == len(script.asked)
        turns.append(await side.ask(messages, session, tokens, final=final))
        answer = script.answers[len(turns) - 1] if script.answers else turns[-1].text
        messages.append({"role": "assistant", "content": answer})
    return turns


async def run_pass(
    side: Side, kind: str, scripts: Sequence[Script], name: str, *, batch: int, number: int,
    tokens: int,
) -> tuple[Pass, list[Script]]:  # fmt: skip
    """All of `scripts`, so many at once; they come back with the answers. Raises `ReplicaError`: a
    figure with a turn missing would be of another load."""
    room = asyncio.Semaphore(batch)

    async def one(script: Script, index: int) -> list[Turn]:
        async with room:
            return await converse(side, script, f"{name}-{index}", tokens)

    before = await side.counters()
    watch = side.watch()
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one(script, index)) for index, script in enumerate(scripts)]
    except ExceptionGroup as failed:
        raise failed.exceptions[0] from None
    held = [task.result() for task in tasks]
    turns = [turn for each in held for turn in each]
    # What replicas have computed does not tell whether they did so in turn or side by side.
    streams_s = sum(turn.ttft_s + turn.decode_s for turn in turns) / batch
    wall_s = watch("") if side.by_clock else streams_s
    acceptance = stepped(turns, before, await side.counters())
    said = [
        msgspec.structs.replace(script, answers=[turn.text for turn in turns])
        for script, turns in zip(scripts, held, strict=True)
    ]
    return summed(held, side.name, kind, batch, number, wall_s, acceptance), said


def summed(
    held: Sequence[Sequence[Turn]], side: str, kind: str, batch: int, number: int,
    wall_s: float, acceptance: float | None,
) -> Pass:  # fmt: skip
    """The figures of the conversations that were `held`. Raises `SettingsError` if none of their
    turns has a speed."""
    turns = [turn for each in held for turn in each]
    if not any(map(_timed, turns)):
        raise SettingsError(
            f"--{side}: every answer came in one piece, so that no token could be timed; "
            "ask for more of them with --output, of a server that streams"
        )
    return Pass(
        side=side, kind=kind, batch=batch, round=number, acceptance=acceptance,
        decode_tok_s=_speed(turns, batch),
        whole_tok_s=sum(turn.tokens for turn in turns) / wall_s,
        tpot_p50_s=median(turn.decode_s / (turn.tokens - 1) for turn in turns if _timed(turn)),
        ttft_p50_s=median(turn.ttft_s for turn in turns),
        turns_at=dict(Counter(turn.replica for turn in turns if turn.replica)),
        turn_tok_s=[_speed(nth, batch) for nth in zip(*held, strict=True)],
    )  # fmt: skip


def _speed(turns: Sequence[Turn], batch: int) -> float:
    """Tokens a second of `batch` such streams; the first token of each is its prompt's."""
    timed = [turn for turn in turns if _timed(turn)]
    decode_s = sum(turn.decode_s for turn in timed)
    return batch * sum(turn.tokens - 1 for turn in timed) / decode_s if timed else 0.0


def _timed(turn: Turn) -> bool:
    return turn.tokens > 1 and turn.decode_s > 0


def stepped(
    turns: Sequence[Turn], before: Mapping[str, float], after: Mapping[str, float]
) -> float | None:
    """Tokens that a sequence came on by with each step, None where the engine does not tell.

    SGLang counts the steps that verified a draft, which are all it makes while it speculates; vLLM
    and llama.cpp count the tokens that were accepted beside the one that each step makes anyway.
    """
    decoded = sum(turn.tokens - 1 for turn in turns)
    accepted = [n for turn in turns if (n := turn.accepted_tokens) is not None]
    if _VERIFIED in after:
        steps = after[_VERIFIED] - before.get(_VERIFIED, 0.0)
    elif _ACCEPTED in after:
        steps = decoded - (after[_ACCEPTED] - before.get(_ACCEPTED, 0.0))
    elif accepted:
        steps = decoded - sum(accepted)
    else:
        return None
    return decoded / steps if steps > 0 else None
