"""A turn under way: its answer, as it is read. It reads; it neither places nor records."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from math import inf
from typing import Any

import msgspec

from sessile.carry_on import (
    Seam,
    Told,
    beginning,
    failure,
    may_break,
    read_marker,
    read_told,
    split,
)
from sessile.errors import ReplicaError, ReplicaRefused, StreamBroken
from sessile.fold import fold
from sessile.messages_chunks import MessagesChunks
from sessile.relay import UsageRelay, events
from sessile.router.connection import UpstreamResponse
from sessile.router.decide import Decision
from sessile.router.doubts import Waiting
from sessile.router.policy import Ask
from sessile.router.replica import Replica
from sessile.sessions.record import Binding, Receipt, SessionKey
from sessile.sessions.store import StoredResult
from sessile.turn_request import TurnRequest

_LARGEST_KEPT_BYTES = 4 * 2**20
_FRAME_EVENTS = 5  # of a stream: its head, its first token, how it finished, usage, [DONE]
_DONE = b"data: [DONE]"


class Transcript(msgspec.Struct, kw_only=True):
    """What a stored turn adds to its conversation; set on the turn by the API that knows it."""

    parent: str | None
    instructions: str | None
    input_items: list[dict[str, Any]]
    output_items: list[dict[str, Any]]
    response: dict[str, Any]


class Turn:
    """A turn under way: its answer, read as it comes, and its receipt. Made by `Flow.serve_turn`.

    An engine's own refusal is an answer like another: `status` is 400 or more, and the body says
    why. `whole` says that nothing is left to read. `receipt` is complete after the block.
    """

    status = 200
    content_type = b"application/json"
    transcript: Transcript | None = None
    served: str | None = None  # what its lineage is found under, where its key has a variant
    whole = False
    decision: Decision | None = None
    ask: Ask | None = None
    binding: Binding | None = None
    fence: int | None = None
    replica: Replica | None = None
    holds: Replica | None = None  # where its adapter stays loaded for it
    usage_body: dict[str, Any] | None = None
    waits_for = ""
    prompt_size = 0
    runs = False
    resends = 0
    first_at: float | None = None
    _first: bytes | None = None
    _response: UpstreamResponse | None = None
    _relay: UsageRelay | None = None
    _kept: list[bytes] | None = None
    _kept_bytes = 0
    _most_kept: float = _LARGEST_KEPT_BYTES
    _folds = False
    _seam: Seam | None = None
    _chunks: MessagesChunks | None = None
    _rescue: "Rescue | None" = None
    _lost: ReplicaError | None = None

    def __init__(self, request: TurnRequest, key: SessionKey, receipt: Receipt) -> None:
        self.request = request
        self.id = receipt.turn
        self.key = key
        self.receipt = receipt
        self._held: list[bytes] = []
        self.began = self.sent_at = self.last_at = time.monotonic()

    @property
    def session(self) -> str:
        """The session's id."""
        return self.key.session

    def fork(self, session: str) -> None:
        """Be the first turn of `session` instead, a child of the session that it was of."""
        claims = self.request.claims
        self.request.claims = msgspec.structs.replace(claims, explicit=None, parent=self.session)
        self.key = SessionKey(self.key.tenant, self.key.model, session)
        self.receipt.session = session

    @property
    def attribution(self) -> str:
        """The session as engines are told of it."""
        return self.key.attribution

    @property
    def adapter(self) -> str | None:
        """The LoRA adapter that it is to run with."""
        return self.key.model if self.ask is not None and self.ask.base is not None else None

    @property
    def request_id(self) -> str:
        """What an engine is told as the id of its request: another, each time the turn goes on."""
        return f"{self.id}.{self.resends}" if self.resends else self.id

    @property
    def reads_stream(self) -> bool:
        """Whether the engine's answer comes as it is made, so that its first bytes say when the
        first token was there."""
        return self._relay is not None or self._folds

    @property
    def yielded(self) -> float | None:
        """Tokens a decoding step by the events of a stream from a replica that speculates, which
        most engines send one a step: an estimate, for want of the engine's own figure."""
        steps = self._relay.events - _FRAME_EVENTS if self._relay is not None else 0
        made = self.receipt.completion_tokens or 0
        return max(1.0, (made - 1) / steps) if steps > 0 and made > _FRAME_EVENTS else None

    @property
    def streams(self) -> bool:
        """Whether the answer is server-sent events."""
        return self.content_type.startswith(b"text/event-stream")

    def waits(self, path: str, replica: Replica) -> Waiting:
        """The turn as one that is sent there now."""
        base = self.ask.base if self.ask is not None else None
        foreseen_s = self.decision.predicted_ttft_s if self.decision is not None else None
        whole = not (self.request.stream or replica.engine.folds)
        return Waiting(path, base or self.key.model, time.monotonic(), foreseen_s or 0.0, whole)

    def opened(
        self, replica: Replica, response: UpstreamResponse, first: bytes, keep: bool,
        rescue: "Rescue | None" = None, *, own: bool = False,
    ) -> None:  # fmt: skip
        """The replica answers: `first` are the bytes that have come. `keep` asks for a copy, and
        `rescue` is called when the replica is lost in the middle of a stream. `own` says that it
        answers in the API of the client's, and not as a chat."""
        self.first_at = self.last_at = time.monotonic()
        self.replica = replica
        self.runs = True
        self.status = self.receipt.status = response.status
        self.content_type = response.headers.get(b"content-type", b"application/json")
        self._response, self._first = response, first
        if self.request.stream and self.streams:
            self._relay = UsageRelay(
                self.request.relay_usage,
                steps=bool(replica.speculates),
                details="return_spec_tokens_details" not in self.request.document,
            )
        elif self.streams:
            self._folds = True
            self.content_type = b"application/json"
        if self.reads_stream and self.status < 400:
            self._rescue = rescue
        if own and self.streams:
            self._chunks = MessagesChunks(counts_cached=replica.counts_cached)
        if self._relay is None or keep or self._rescue is not None:
            self._kept = []
            if self.request.told:
                self._kept.append(beginning(self.request.path, self.request.told))

    def sewn(self, seam: Seam) -> None:
        """What the replica is about to answer is to be made the rest of what was told."""
        self._seam = seam

    def told(self) -> Told:
        """What the client of a stream has been told, read from the copy; the copy then ends there.

        Of a plain answer that is being put together, what it would have been told.
        """
        told = read_told(b"".join(self._kept or ()))
        self._kept = [told.data]
        if self._relay is not None:
            self._relay.rest()  # half an event; it was not passed on
        return told

    def goes_on(self, replica: Replica, response: UpstreamResponse, first: bytes) -> None:
        """Another replica answers in the place of the one that was lost."""
        self.replica = replica
        self.runs = True
        self._response, self._first, self._lost = response, first, None
        self._chunks = None

    def ends_with(self, events: bytes) -> None:
        """All has been said but these last events; no replica is asked for them."""
        self._response, self._first, self._lost = None, events, None
        self._seam = self._chunks = None

    def ended(self, replica: Replica, events: bytes) -> None:
        """Nothing has to be asked of the replica: the answer ends with these events."""
        self.first_at = self.last_at = time.monotonic()
        self.replica = replica
        self.content_type = b"text/event-stream"
        self._relay = UsageRelay(self.request.relay_usage)
        self._first = events

    def starts_over(self) -> None:
        """Nothing that has come counts any more: no client has been told of it."""
        self._kept, self._held = [], []
        if self._relay is not None:
            self._relay.start_over()

    @property
    def unheard(self) -> bool:
        """Whether nothing of the answer is told before it is whole."""
        return self._folds or self.request.unheard

    def replay(self, result: StoredResult) -> None:
        """Give the stored answer of an earlier try, in its name."""
        self.id = result.turn
        self.status, self.content_type = result.status, result.content_type.encode("latin-1")
        self._first = result.body
        if self.request.stream and self.streams:
            self._relay = UsageRelay(self.request.relay_usage)

    async def read(self) -> bytes:
        """The next bytes of the answer, `b""` after its end. For a stream: whole events, and all
        of them at once where nobody hears of it before.

        A stream whose replica is lost goes on at another, after a comment that says so. Raises
        `StreamBroken` or another `ReplicaError` where that cannot be.
        """
        passed = b""
        if self._folds and not self.whole:
            await self._fold()
        if self.request.unheard:
            return await self._gather()
        while not passed and not self.whole:
            passed = await self._step()
        return passed

    async def _step(self) -> bytes:
        """Pass on what comes next, perhaps nothing yet."""
        try:
            chunk = await self._next()
        except ReplicaError as error:
            return await self._go_on(error)
        passed = chunk if self._relay is None else self._relay.feed(chunk)
        if self._rescue is not None and may_break(passed):
            passed = self._sound(passed)
        if self._lost is None and (self._response is None or self._response.whole):
            if self._ended_early():
                return passed
            self._end()
            if self._relay is not None:
                passed += self._relay.rest()
            if self._response is not None:
                self._response.close()
        return passed

    async def _next(self) -> bytes:
        """The bytes that come next, as those of one answer, and kept if a copy is wanted."""
        if self._lost is not None:
            raise self._lost
        if self._first is not None:
            chunk, self._first = self._first, None
        else:
            assert self._response is not None
            chunk = await self._response.read()
            self.last_at = time.monotonic()
            if self._rescue is not None and self.replica is not None:
                self.replica.doubts.well_at = self.last_at
        if self._chunks is not None:
            chunk = self._chunks.feed(chunk)
        if self._seam is not None:
            chunk = self._seam.feed(chunk)
        if self._kept is not None:
            self._keep(chunk)
        return chunk

    async def _go_on(self, error: ReplicaError) -> bytes:
        """Have the lost replica replaced; returns what tells of it."""
        if self._response is not None:
            self._response.close()
        if self._rescue is None or self._kept is None:
            raise error
        return await self._rescue(self, error)

    def _sound(self, passed: bytes) -> bytes:
        """The events before the one by which the engine says that it failed, if one does."""
        sound: list[bytes] = []
        for event in split(passed):
            if (why := failure(event)) is not None:
                self._lost = ReplicaRefused(f"the engine failed: {why}")
                return b"".join(sound)
            sound.append(event)
        return passed

    def _ended_early(self) -> bool:
        """Whether the stream ended without saying so; it is lost then."""
        if self._rescue is None or self._kept is None or _DONE in b"".join(self._kept[-3:]):
            return False
        self._lost = StreamBroken("the engine ended its answer before it was whole")
        return True

    async def _gather(self) -> bytes:
        """Read the stream to its end, over again where it is begun anew; where it went on is for
        nobody to know but the receipt."""
        while not self.whole:
            passed = await self._step()
            if read_marker(passed) is None:
                self._held.append(passed)
        held, self._held = self._held, []
        return b"".join(held)

    async def _fold(self) -> None:
        """Read the stream to its end, and let the plain answer that it adds up to be read."""
        self._most_kept = inf
        while True:
            try:
                await self._next()
                done = self._response is None or self._response.whole
                if done and not self._ended_early():
                    break
            except ReplicaError as error:
                await self._go_on(error)
        self.status, body = fold(events(b"".join(self._kept or ())))
        self.receipt.status = self.status
        self._first, self._response = msgspec.json.encode(body), None
        self._kept, self._kept_bytes, self._most_kept = [], 0, _LARGEST_KEPT_BYTES
        self._rescue = self._seam = None

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while chunk := await self.read():
            yield chunk

    def kept(self) -> bytes:
        """The answer as the engine gave it, as far as a copy was kept."""
        return b"".join(self._kept) if self._kept else b""

    def hang_up(self) -> bool:
        """Close an answer that has not ended; whether there was one. A client that leaves after
        `[DONE]`, as most do, has had all of it, though the connection may not have ended."""
        if self.whole or self._response is None:
            return False
        self._response.close()
        if self._relay is None or not self._relay.done:
            return True
        self._end()
        return False

    def _end(self) -> None:
        self.whole = True
        if self._relay is not None:
            self.usage_body = self._relay.usage_body
            self.waits_for = self._relay.called

    def headers(self) -> list[tuple[bytes, bytes]]:
        """The `X-Sessile-*` headers of the answer."""
        found = [
            (b"x-sessile-session", self.session.encode("ascii", "backslashreplace")),
            (b"x-sessile-turn", self.id.encode()),
        ]
        if self.decision is not None:
            found.append((b"x-sessile-replica", self.decision.replica.encode()))
            found.append((b"x-sessile-reason", self.decision.reason.encode()))
        if self.receipt.variant is not None:
            found.append((b"x-sessile-variant", self.receipt.variant.encode()))
        return found

    def _keep(self, chunk: bytes) -> None:
        assert self._kept is not None
        self._kept_bytes += len(chunk)
        if self._kept_bytes > self._most_kept:
            self._kept = None
        else:
            self._kept.append(chunk)


Rescue = Callable[[Turn, ReplicaError], Awaitable[bytes]]
"""Finds a turn another replica and tells of it in the stream's own terms, or raises."""


def outcome_of(error: BaseException) -> str:
    """How a turn that ended with `error` is counted."""
    if isinstance(error, asyncio.CancelledError | GeneratorExit | OSError):
        return "client_gone"  # an OSError is the client's line: a replica's is a ReplicaError
    return getattr(error, "code", "failed")
