"""The one way that a response is made, whoever asks for it.

A response is a turn of the flow like any other: its chat stream is read into events, and its items
are stored with it. The events of a stored one that streams are logged, so that it can be followed
from anywhere (`responses_kept`), and taken over (`responses_resume`). What a request means is
`responses_body`'s and `responses_items`', what is told of the answer `responses_events`'; it is
served by `responses_http` and `responses_ws`.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from time import time
from typing import Any, Protocol

import msgspec

from sessile.api.responses_body import Asked, chat_body, read_request
from sessile.api.responses_events import Event, ResponseStream
from sessile.api.responses_record import Accepted, on_disconnect, response_in, write_accepted
from sessile.api.wire import engine_error
from sessile.durable import Durable, Orphan
from sessile.errors import (
    ClientGone,
    InvalidRequest,
    SessileError,
    StoreUnavailable,
    from_code,
)
from sessile.event_feed import kind_of
from sessile.flow import Flow
from sessile.live_turn import LiveTurn
from sessile.sessions.hints import read_hints
from sessile.sessions.identity import SessionClaims, read_claims
from sessile.sessions.record import TurnRecord
from sessile.sessions.store import Store, StoredResult
from sessile.sessions.transcript import Link, Transcripts, new_response_id
from sessile.turn import Transcript, Turn, TurnRequest

log = logging.getLogger("sessile.api")

_CHAT = "/v1/chat/completions"

Headers = Sequence[tuple[bytes, bytes]]


class Answer(Protocol):
    """What is known of an answer when it begins."""

    def headers(self) -> list[tuple[bytes, bytes]]:
        """The `X-Sessile-*` headers."""


class Audience(Protocol):
    """Who is told of a response as it is made. Its methods may wait: the engine then waits too."""

    async def open(self, turn: Answer) -> None:
        """The answer has begun; called once, before any event."""

    async def tell(self, events: list[Event]) -> None:
        """The next events, in their order."""


class Made(msgspec.Struct, frozen=True):
    """A response that has ended, and why it failed if it did."""

    response: dict[str, Any]
    error: SessileError | None


class _Followed(msgspec.Struct, frozen=True):
    """The answer of a turn that is only listened to."""

    turn: str

    def headers(self) -> list[tuple[bytes, bytes]]:
        return [(b"x-sessile-turn", self.turn.encode())]


class Job:
    """One response under way. `pending` are the events that have been made and not told yet, `live`
    is there where others may follow."""

    def __init__(
        self, tenant: str, accepted: Accepted, request: TurnRequest, stream: ResponseStream
    ) -> None:
        self.tenant = tenant
        self.accepted = accepted
        self.request = request
        self.stream = stream
        self.audience: Audience | None = None
        self.live: LiveTurn | None = None
        self.pending: list[Event] = []

    async def tell(self, ended: bool = False) -> None:
        """Tell what is pending; those who follow first, which never waits."""
        events = self.log(ended)
        if self.audience is not None and events:
            await self.audience.tell(events)

    def log(self, ended: bool) -> list[Event]:
        """Tell what is pending to the log and to those who follow only."""
        events, self.pending = self.pending, []
        if self.live is not None:
            self.live.tell([event.body for event in events], ended)
        return events


class Responses:
    """Makes responses. One a router, made by `app`; `turns` are those that outlive their client.
    `resume` brings one to its end that was taken over from another router."""

    def __init__(
        self,
        flow: Flow,
        store: Store,
        resume: "Callable[[Responses, Orphan], Any]",
        clock: Callable[[], float] = time,
    ) -> None:
        self._flow = flow
        self._transcripts = Transcripts(store)
        self.store = store
        self.clock = clock
        self.turns = Durable(store, lambda orphan: resume(self, orphan))

    async def make(
        self,
        tenant: str,
        headers: Headers,
        body: dict[str, Any],
        audience: Audience,
        *,
        once: str | None = None,
        stream_id: str | None = None,
        streams: bool = True,
    ) -> Made:
        """Run the turn that `body` asks for, telling `audience` of it to the last event.

        Raises a `SessileError` while nothing has been told; after that a failure is an event like
        others. The last event is told when the turn has been stored, so that its successor may
        come at once, at any router. Cancelling stops the engine, and stores nothing; where the
        client has declared that its turn is to go on without it, cancelling only stops telling.
        A turn that runs under the key `once`, at whichever router, is listened to instead.
        """
        asked = read_request(body)
        if asked.background:
            raise InvalidRequest("background responses are made over HTTP", param="background")
        detach = on_disconnect(headers) == "detach"
        if detach and not asked.store:
            raise InvalidRequest("what is not stored cannot outlive its client", param="store")
        under = await self._under(tenant, once)
        if isinstance(under, str):
            return await self.attend(tenant, under, audience)
        job = await self._job(tenant, headers, body, asked, once, stream_id)
        if asked.store and (streams or detach) and under is None:
            live = self._accept(job)
            if detach:
                run = self.turns.spawn(live, self._run(job))
                return await self.attend(tenant, job.accepted.turn, audience, run)
        job.audience = audience
        return await self._run(job)

    async def begin(
        self, tenant: str, headers: Headers, body: dict[str, Any], once: str | None = None
    ) -> str:
        """Accept a response in the background, and let it run; its id.

        It is in the log when this returns, unless the store is away: then only this router knows
        of it. Raises what is wrong with the request.
        """
        asked = read_request(body)
        under = await self._under(tenant, once)
        if under is not None:
            return under if isinstance(under, str) else under.turn
        job = await self._job(tenant, headers, body, asked, once, None)
        live = self._accept(job)
        job.pending += job.stream.accept()
        job.log(ended=False)
        self.turns.spawn(live, self._run(job))
        with suppress(StoreUnavailable):
            await self.turns.writer.flush()
        return job.accepted.turn

    async def attend(
        self, tenant: str, turn: str, audience: Audience, run: "asyncio.Task[Any] | None" = None
    ) -> Made:
        """Tell `audience` of a turn that runs, or ran, without it. What goes wrong in a `run` of
        ours before there is an answer is raised."""
        last = b""
        async for told in self.turns.feed.follow(tenant, turn, -1):
            if not last:
                failed = run is not None and run.done() and not run.cancelled()
                error = run.exception() if run is not None and failed else None
                if isinstance(error, SessileError):
                    raise error
                await audience.open(_Followed(turn))
            last = told[-1][1]
            await audience.tell([Event(kind_of(body).decode(), body) for _, body in told])
        response = response_in(kind_of(last), last) if last else None
        if response is None:
            raise StoreUnavailable(f"how turn {turn!r} ended was not kept")
        return Made(response, _failure_in(response))

    async def run_again(self, job: Job) -> None:
        """Run a turn that was taken over."""
        job.request = await self.request(job.tenant, job.accepted)
        job.stream.response["model"] = job.request.model
        await self._make(job)

    def give_up(self, job: Job, error: BaseException, keep: bool) -> None:
        """End the events of a turn that cannot be brought to its end, unless another router is to
        do it; `keep` stores what there is of it."""
        live = job.live
        if live is None or live.ended or live.stopped == "lost":
            return
        gone = isinstance(error, asyncio.CancelledError | GeneratorExit | OSError)
        if gone and live.stopped is None and self.turns.stopping:
            return
        now = self.clock()
        if live.stopped == "cancelled":
            job.pending += job.stream.cancel(now)
        elif gone:
            job.pending += job.stream.fail(ClientGone("the client hung up"), now)
        elif isinstance(error, SessileError):
            job.pending += job.stream.fail(error, now)
        else:
            said = SessileError("the router failed; its log says why")
            job.pending += job.stream.fail(said, now)
        job.log(ended=True)
        if keep:
            self.store.put_turn(_record(job))

    async def request(self, tenant: str, accepted: Accepted) -> TurnRequest:
        """The turn that an accepted response is. Raises what of it cannot be."""
        asked, body, headers = accepted.asked, accepted.body, accepted.headers
        past: list[list[dict[str, Any]]] = []
        model = asked.model
        session: str | None = None
        if asked.previous is not None:
            links = await self._transcripts.walk(tenant, asked.previous)
            for link in links:
                past += (link.input_items, link.output_items)
            session = links[-1].session
            model = model or links[-1].model
        if model is None:
            raise InvalidRequest("model must be a non-empty string", param="model")
        document = chat_body(asked, model, past)
        return TurnRequest(
            tenant=tenant,
            path=_CHAT,
            model=model,
            claims=_claims(headers, body, document, asked.previous is not None, session),
            hints=read_hints(headers, {**body, "max_tokens": body.get("max_output_tokens")}),
            document=document,
            stream=True,
            relay_usage=True,
            stateful=asked.previous is not None,
            turn=accepted.turn,
            idempotency_key=accepted.once,
        )

    # -- making one

    async def _job(
        self,
        tenant: str,
        headers: Headers,
        body: dict[str, Any],
        asked: Asked,
        once: str | None,
        stream_id: str | None,
    ) -> Job:
        accepted = Accepted(
            turn=new_response_id(),
            created_at=int(self.clock()),
            asked=asked,
            body=body,
            headers=list(headers),
            once=once,
            stream_id=stream_id,
        )
        request = await self.request(tenant, accepted)
        stream = ResponseStream(accepted.skeleton(request.model), stream_id)
        return Job(tenant, accepted, request, stream)

    def _accept(self, job: Job) -> LiveTurn:
        """From now on the turn is known to all routers, and its events are kept."""
        record = write_accepted(job.accepted)
        job.live = self.turns.writer.begin(job.tenant, job.accepted.turn, record)
        return job.live

    async def _under(self, tenant: str, once: str | None) -> StoredResult | str | None:
        """What is known under an idempotency key: the id of a turn that can be followed, or the
        answer that the flow will give again."""
        if once is None:
            return None
        try:
            found = await self.store.get_once(tenant, once)
            if isinstance(found, str) and self.turns.writer.find(tenant, found) is None:
                standing = await self.store.events.look(tenant, found)
                return None if standing is None else found
        except StoreUnavailable:
            return None
        return found

    async def _run(self, job: Job) -> Made:
        try:
            return await self._make(job)
        except BaseException as error:  # whatever happens, a turn that was accepted ends
            self.give_up(job, error, keep=job.accepted.asked.background)
            raise

    async def _make(self, job: Job) -> Made:
        failure: SessileError | None = None
        async with self._flow.serve_turn(job.request) as turn:
            if turn.status >= 400:
                raise engine_error(turn.status, await _rest(turn, b""))
            stream = job.stream
            if turn.id != job.accepted.turn:  # an earlier one's answer
                job.stream = stream = ResponseStream(
                    {**stream.response, "id": turn.id}, job.accepted.stream_id
                )
            job.pending += stream.start()
            chunk = await turn.read()
            if turn.content_type.startswith(b"text/event-stream"):
                stream.feed(chunk, job.pending)
            else:
                stream.feed_chunk(await _rest(turn, chunk), job.pending)
            if job.audience is not None:
                await job.audience.open(turn)
            await job.tell()
            try:
                while chunk := await turn.read():
                    stream.feed(chunk, job.pending)
                    if job.pending:
                        await job.tell()
                job.pending += stream.finish(self.clock())
            except SessileError as error:
                turn.receipt.outcome = error.code
                failure = error
                job.pending += stream.fail(error, self.clock())
            except asyncio.CancelledError:
                if job.live is not None and job.live.stopped == "cancelled":
                    job.pending += stream.cancel(self.clock())
                    turn.transcript = _transcript(job)
                raise
            if job.accepted.asked.store:
                self._keep(turn, job)
        await job.tell(ended=True)
        return Made(stream.response, failure)

    def _keep(self, turn: Turn, job: Job) -> None:
        """Have the turn stored with what it adds to its conversation."""
        turn.transcript = made = _transcript(job)
        if made.response["status"] != "failed":
            link = Link(
                turn.session, turn.receipt.model, made.parent, made.input_items, made.output_items
            )
            self._transcripts.remember(turn.request.tenant, turn.id, link)


def _transcript(job: Job) -> Transcript:
    asked, response = job.accepted.asked, job.stream.response
    return Transcript(
        parent=asked.previous,
        instructions=asked.instructions,
        input_items=asked.items,
        output_items=response["output"],
        response=response,
    )


def _record(job: Job) -> TurnRecord:
    """What is stored of a turn that no engine has answered, or that only its first router knew."""
    made = _transcript(job)
    return TurnRecord(
        turn=job.accepted.turn,
        tenant=job.tenant,
        session=job.request.claims.explicit,
        model=job.request.model,
        parent=made.parent,
        instructions=made.instructions,
        input_items=made.input_items,
        output_items=made.output_items,
        response=made.response,
    )


def _failure_in(response: dict[str, Any]) -> SessileError | None:
    """Why a response has failed, as the error that it was."""
    if response.get("status") != "failed":
        return None
    error = response.get("error") or {}
    return from_code(str(error.get("type")), str(error.get("message")))


def _claims(
    headers: Headers,
    body: dict[str, Any],
    document: dict[str, Any],
    continues: bool,
    session: str | None,
) -> SessionClaims:
    """The session that the request names, else that of the response it follows, else, for a
    request that carries its whole history, what its messages tell. One that names a session and
    follows a response of another is a fork of that other."""
    claims = read_claims(headers, body, None if continues else document["messages"])
    if session is None or claims.explicit == session:
        return claims
    if claims.explicit is None:
        return msgspec.structs.replace(claims, explicit=session)
    return msgspec.structs.replace(claims, parent=claims.parent or session)


async def _rest(turn: Turn, start: bytes) -> bytes:
    parts = [start]
    while chunk := await turn.read():
        parts.append(chunk)
    return b"".join(parts)
