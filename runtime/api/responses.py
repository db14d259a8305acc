"""The one way that a response is made, whoever asks for it.

How an engine is called for it is `responses_make`'s. The events of a stored one that streams are
logged, so that it can be followed from anywhere (`responses_kept`), and taken over
(`responses_resume`). What a request means is `responses_body`'s and `responses_items`', what is
told of the answer `responses_events`'; it is served by `responses_http` and `responses_ws`.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from time import time
from typing import Any

import msgspec

from sessile.api.mcp_client import McpServers
from sessile.api.responses_body import Asked, read_request
from sessile.api.responses_context import Contexts, read_turn
from sessile.api.responses_events import ResponseStream
from sessile.api.responses_job import Audience, Followed, Job, Made, Successor
from sessile.api.responses_make import Maker
from sessile.api.responses_once import Earlier, Once
from sessile.api.responses_record import Accepted, response_in, write_accepted
from sessile.api.responses_sequence import Event
from sessile.api.responses_steered import (
    accepted_before,
    follows,
    named,
    said_in,
    successor_in,
)
from sessile.api.responses_stored import Surface
from sessile.api.steering import successor
from sessile.durable import Durable, Orphan
from sessile.errors import (
    ClientGone,
    InvalidRequest,
    RouterLost,
    SessileError,
    StoreUnavailable,
    from_code,
)
from sessile.event_feed import kind_of
from sessile.flow import Flow
from sessile.live_turn import LiveTurn, TurnTaken
from sessile.router.pool import Pool
from sessile.sessions.store import OnceKey, Store
from sessile.sessions.transcript import Transcripts, new_response_id, successor_id
from sessile.settings import Settings

log = logging.getLogger("sessile.api")

Headers = Sequence[tuple[bytes, bytes]]


class Responses:
    """Makes responses. One a router, made by `app`; `turns` are those that outlive their client.
    `resume` brings one to its end that was taken over from another router."""

    def __init__(
        self, flow: Flow, pool: Pool, store: Store, settings: Settings,
        resume: "Callable[[Responses, Orphan], Any]", clock: Callable[[], float] = time,
    ) -> None:  # fmt: skip
        self._settings = settings
        self.flow = flow
        self._transcripts = Transcripts(store)
        self.contexts = Contexts(store, self._transcripts, settings.sessions, pool.meant)
        self._maker = Maker(flow, pool, store, self._transcripts, self.contexts, clock)
        self.store = store
        self.clock = clock
        self.turns = Durable(
            store, lambda orphan: resume(self, orphan),
            able=lambda: any(replica.state == "ready" for replica in pool),
        )  # fmt: skip
        self.once = Once(flow.once, store, self.turns)
        self.surface = Surface(flow, pool, self.contexts)

    async def aclose(self) -> None:
        """Leave to other routers what runs without a client, and write what was told."""
        await self.turns.aclose()
        await self.once.aclose()

    async def make(
        self,
        tenant: str,
        headers: Headers,
        body: dict[str, Any],
        audience: Audience,
        *,
        once: OnceKey | None = None,
        stream_id: str | None = None,
        streams: bool = True,
        stop: Callable[[], bool] | None = None,
        forks: bool = False,
        remember: bool = False,
        detach: bool = False,
    ) -> Made:
        """Run the turn that `body` asks for, telling `audience` of it to the last event.

        Raises a `SessileError` while nothing has been told; after that a failure is an event like
        others. The last event is told when the turn has been stored, so that its successor may
        come at once, at any router. Cancelling stops the engine, and stores nothing; where it is to
        `detach` from a client that goes, cancelling only stops telling.
        A response that runs, or ran, under the key `once`, at whichever router, is told instead.

        Once `stop` says so the response is ended as steered, where that is safe. One that `forks`
        is a session of its own, started by that of its parent. With `remember` a response that is
        not stored can be continued at this router, until it is forgotten.
        """
        asked = read_request(body)
        if asked.background:
            raise InvalidRequest("background responses are made over HTTP", param="background")
        if detach and not asked.store:
            raise InvalidRequest("what is not stored cannot outlive its client", param="store")
        accepted = self._accepted(
            headers, body, asked, once, stream_id, forks=forks, detached=detach
        )
        job = await self._job(tenant, accepted)
        job.stop, job.remember = stop, remember
        job.unheard = not streams and not detach
        if (earlier := await self.once.begin(job)) is not None:
            return await self._again(tenant, earlier, audience)
        if asked.store and (streams or detach or job.once is not None):
            live = self._accept(job)
            if detach:
                run = self.turns.spawn(live, self._run(job))
                return await self.attend(tenant, job.id, audience, job, run)
        elif job.once is not None:
            job.kept = []
        job.audience = audience
        return await self._run(job)

    async def begin(
        self, tenant: str, headers: Headers, body: dict[str, Any], once: OnceKey | None = None
    ) -> str:
        """Accept a response in the background, and let it run; its id.

        It is in the log when this returns, unless the store is away: then only this router knows
        of it. Raises what is wrong with the request.
        """
        asked = read_request(body)
        accepted = self._accepted(headers, body, asked, once, detached=True)
        job = await self._job(tenant, accepted)
        if (earlier := await self.once.begin(job)) is not None:
            return earlier.turn
        live = self._accept(job)
        job.pending += job.stream.accept()
        job.log(ended=False)
        self.turns.spawn(live, self._run(job))
        with suppress(StoreUnavailable):
            await self.turns.writer.flush()
        return job.id

    async def attend(
        self, tenant: str, turn: str, audience: Audience, job: Job | None = None,
        run: "asyncio.Task[Any] | None" = None,
    ) -> Made:  # fmt: skip
        """Tell `audience` of a turn that runs, or ran, without it. What goes wrong in a `run` of
        ours before there is an answer is raised."""
        last = b""
        async for told in self.turns.feed.follow(tenant, turn, -1):
            if not last:
                failed = run is not None and run.done() and not run.cancelled()
                error = run.exception() if run is not None and failed else None
                if isinstance(error, SessileError):
                    raise error
                answers = None if job is None else job.turn
                await audience.open(answers or Followed(turn))
            last = told[-1][1]
            await audience.tell([Event(kind_of(body).decode(), body) for _, body in told])
        return _made(turn, last)

    async def run_again(self, job: Job) -> None:
        """Run a turn that was taken over. Raises what of it cannot be."""
        found = await self._job(job.tenant, job.accepted)
        job.asked, job.context, job.request = found.asked, found.context, found.request
        job.stream.response["model"] = found.request.model
        await self._make(job)

    def give_up(self, job: Job, error: BaseException, keep: bool) -> bool:
        """End the events of a turn that cannot be brought to its end, unless another router is to
        do it, or has done it: False then. `keep` stores what there is of it."""
        live = job.live
        if live is None or live.ended:
            return True
        if live.stopped == "lost":
            return False
        gone = isinstance(error, asyncio.CancelledError | GeneratorExit | OSError)
        if gone and live.stopped is None and self.turns.stopping:
            return False
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
            self.store.put_turn(job.record())
        return True

    async def succeed(self, job: Job, *, again: bool = False) -> None:
        """Have a response that was steered be followed by one that takes that in, and its last
        event, which is pending, say so. `again`: another router may have done so before."""
        if not follows(job):
            return
        assert job.live is not None
        id = successor_id(job.id)
        if again:
            with suppress(StoreUnavailable):
                before = await self.store.events.look(job.tenant, id)
                if before is not None:
                    successor_before = accepted_before(before.accept.record)
                    job.pending[-1] = named(job.pending[-1], successor_before)
                    return
        said = await self.turns.said_into(job.live)
        body = successor(job.accepted.body, job.id, said_in(said))
        accepted = msgspec.structs.replace(
            job.accepted, turn=id, created_at=int(self.clock()), asked=read_request(body),
            body=body, once=None, forks=False, steers=list(said),
        )  # fmt: skip
        try:
            follower = await self._job(job.tenant, accepted)
        except SessileError as error:  # whoever follows says it then
            log.warning("steers were not taken in turn=%s why=%r", job.id, error.message)
            return
        self.turns.spawn(self._accept(follower), self._run(follower))
        job.pending[-1] = named(job.pending[-1], Successor(id, accepted.steers))

    def forget(self, tenant: str, response: str) -> None:
        """Do not remember a response: it can be continued no longer, unless it is stored."""
        self._transcripts.forget(tenant, response)

    # -- making one

    def _accepted(
        self, headers: Headers, body: dict[str, Any], asked: Asked, once: OnceKey | None,
        stream_id: str | None = None, *, forks: bool = False, detached: bool = False,
    ) -> Accepted:  # fmt: skip
        return Accepted(
            turn=new_response_id(), created_at=int(self.clock()), asked=asked, body=body,
            headers=list(headers), once=once, stream_id=stream_id, forks=forks,
            detached=detached,
        )  # fmt: skip

    async def _job(self, tenant: str, accepted: Accepted) -> Job:
        """The turn that an accepted response is. Raises what of it cannot be."""
        McpServers(accepted.asked.toolset.servers, self._settings)  # which may not be allowed
        asked, context = await self.contexts.find(tenant, accepted.asked)
        request = read_turn(
            tenant, accepted.headers, accepted.body, asked, context, accepted.turn,
            forks=accepted.forks,
        )  # fmt: skip
        stream = ResponseStream(
            accepted.skeleton(request.model), accepted.stream_id,
            seals=asked.seals_reasoning, silent=not asked.cache.generate,
        )  # fmt: skip
        return Job(tenant, accepted, asked, context, request, stream)

    def _accept(self, job: Job) -> LiveTurn:
        """From now on the turn is known to all routers, and its events are kept."""
        record, session = write_accepted(job.accepted), job.request.claims.explicit
        live = self.turns.writer.begin(job.tenant, job.id, record, session=session)
        job.runs_as(live)
        return live

    async def _again(self, tenant: str, earlier: Earlier, audience: Audience) -> Made:
        """Tell of the response of an earlier try."""
        if not earlier.events:
            return await self.attend(tenant, earlier.turn, audience)
        await audience.open(earlier)
        await audience.tell(earlier.events)
        return _made(earlier.turn, earlier.events[-1].body)

    async def _run(self, job: Job) -> Made:
        try:
            await self._make(job)
        except TurnTaken:
            self.once.leave(job)
            return await self._listen_on(job)
        except BaseException as error:  # whatever happens, a turn that was accepted ends
            if isinstance(error, Exception):
                with suppress(TurnTaken, OSError):
                    await job.caught_up()  # before it is told of the error
            if self.give_up(job, error, keep=job.asked.background):
                self.once.free(job)
            else:
                self.once.leave(job)
            raise
        return Made(job.stream.response, job.failure)

    async def _listen_on(self, job: Job) -> Made:
        """Another router runs the turn now, and the engine's call of this one has been stopped:
        the client is told what that router tells, behind what it has seen."""
        assert job.live is not None and job.audience is not None
        if job.seen >= job.live.written:
            raise RouterLost(
                "another router has taken this response over, and does not know all that was told "
                "of it here: get the response, or send it again"
            )
        if not job.opened:
            await job.audience.open(Followed(job.id))
        last = b""
        async for told in self.turns.feed.follow(job.tenant, job.id, job.seen):
            last = told[-1][1]
            await job.audience.tell([Event(kind_of(body).decode(), body) for _, body in told])
        return _made(job.id, last)

    async def _make(self, job: Job) -> None:
        async with McpServers(job.asked.toolset.servers, self._settings) as servers:
            await self._maker.make(job, servers)
            await self.succeed(job)
            await self.once.end(job)
            await job.tell(ended=True)


def _made(turn: str, last: bytes) -> Made:
    """What the last event of a response says of it."""
    response = response_in(kind_of(last), last) if last else None
    if response is None:
        raise StoreUnavailable(f"how turn {turn!r} ended was not kept")
    return Made(response, _failure_in(response), successor_in(last))


def _failure_in(response: dict[str, Any]) -> SessileError | None:
    """Why a response has failed, as the error that it was."""
    if response.get("status") != "failed":
        return None
    error = response.get("error") or {}
    return from_code(str(error.get("type")), str(error.get("message")))
