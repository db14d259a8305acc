"""How a response is made: an engine is called once, and again after each reply that called MCP
tools. Each call is a turn of the flow, under the one id of the response.
"""

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import msgspec

from sessile.accounts import written
from sessile.api.comparison import diagnosed, find_compared
from sessile.api.mcp_client import McpServers
from sessile.api.responses_context import Contexts, read_turn
from sessile.api.responses_job import Job
from sessile.api.responses_steps import Steps
from sessile.api.wire import engine_error
from sessile.carry_on import marker
from sessile.errors import PromptTooLong, SessileError, StoreError
from sessile.flow import Flow
from sessile.router.pool import Pool
from sessile.sessions.store import Store
from sessile.sessions.transcript import Link, Transcripts
from sessile.turn import Turn
from sessile.turn_request import TurnRequest

log = logging.getLogger("sessile.api")


class Maker:
    """Makes responses, up to their last event, which is left pending. One a router, made by
    `Responses`."""

    def __init__(
        self, flow: Flow, pool: Pool, store: Store, transcripts: Transcripts, contexts: Contexts,
        clock: Callable[[], float],
    ) -> None:  # fmt: skip
        self._flow = flow
        self._pool = pool
        self._store = store
        self._transcripts = transcripts
        self._contexts = contexts
        self._clock = clock

    async def make(self, job: Job, servers: McpServers) -> None:
        """Run the turns of a response, telling of it. Raises a `SessileError` while no engine has
        begun to answer; after that a failure is an event like others."""
        comparison = job.asked.cache.comparison
        if comparison is not None:
            job.compared = await find_compared(
                self._store, self._transcripts, job.tenant, comparison
            )
        when_busy = job.request.hints.when_busy
        async with self._contexts.writing(job.tenant, job.asked, job.id, when_busy):
            if job.asked.conversation is not None:  # which is ours only now
                await self._find_again(job)
            job.request.unheard = job.unheard
            steps = Steps(self._flow, self._pool, servers, job.asked, job.context, job.request)
            await steps.begin()
            job.stream.called = steps.called
            while not job.stream.ended:
                try:
                    await self._call(job, steps)
                except SessileError as error:
                    if not job.opened:
                        if isinstance(error, PromptTooLong) and steps.shorten():
                            continue
                        raise
                    # A call after the first could not even begin, or was refused.
                    await self._fail(job, error)
            await self._contexts.append(job.tenant, job.asked, job.stream.response)

    async def _find_again(self, job: Job) -> None:
        accepted = job.accepted
        job.asked, job.context = await self._contexts.find(job.tenant, accepted.asked)
        job.request = read_turn(
            job.tenant, accepted.headers, accepted.body, job.asked, job.context, job.id,
            forks=accepted.forks,
        )  # fmt: skip

    async def _call(self, job: Job, steps: Steps) -> None:
        """Have an engine answer, and run the MCP tools that it calls."""
        stream = job.stream
        async with self._flow.serve_turn(_next(job, steps)) as turn:
            if turn.status >= 400:
                raise engine_error(turn.status, await _rest(turn, b""))
            if not job.opened:
                job.session = turn.session
                job.pending += stream.start()
                for item in steps.made:
                    stream.place(item, job.pending)
                if job.told:
                    turn.receipt.continued += 1
                    assert turn.replica is not None
                    stream.feed(marker(turn.replica.id), job.pending)
            job.turn = turn
            chunk = await turn.read()
            if turn.content_type.startswith(b"text/event-stream"):
                stream.feed(chunk, job.pending)
            else:
                stream.feed_chunk(await _rest(turn, chunk), job.pending)
            await job.open(turn)
            await job.tell()
            calls: list[dict[str, Any]] = []
            try:
                # In a task of its own: what waits for each event passes through all that awaits it.
                calls = await asyncio.create_task(self._hear(job, turn))
                if calls and stream.waits:
                    await _run(steps, calls, job)
                if not stream.ended and (not calls or stream.waits):
                    if job.asked.cache.comparison is not None:
                        found = diagnosed(turn, stream.response, job.compared)
                        stream.response["prompt_cache_diagnostics"] = found
                    job.pending += stream.finish(self._clock())
            except SessileError as error:
                turn.receipt.outcome = error.code
                job.failure = error
                job.pending += stream.fail(error, self._clock())
            if stream.ended and job.asked.store:
                self._keep(job, turn)
            elif stream.ended and job.remember:
                self._remember(job, turn)
        if not stream.ended:
            await _run(steps, calls, job)
            stream.go_on()

    async def _hear(self, job: Job, turn: Turn) -> list[dict[str, Any]]:
        """Read an engine's answer to its end, or until the response is to stop; the MCP calls that
        it made, if any."""
        stream, stop = job.stream, job.stop
        while chunk := await turn.read():
            stream.feed(chunk, job.pending)
            if job.pending:
                await job.tell()
            if stop is not None and stop() and stream.may_stop:
                turn.receipt.outcome = "steered"
                job.pending += stream.stop("steered", self._clock())
                break
        return stream.pause(job.pending)

    # -- what is kept

    def _keep(self, job: Job, turn: Turn) -> None:
        """Have the turn stored with what it adds to its conversation."""
        turn.transcript = job.transcript()
        self._remember(job, turn)

    def _remember(self, job: Job, turn: Turn) -> None:
        """Let its successor find it without the store."""
        asked, response = job.asked, job.stream.response
        if response["status"] != "failed":
            link = Link(
                turn.session, turn.receipt.model, asked.previous, asked.items, response["output"],
                asked.conversation,
            )  # fmt: skip
            self._transcripts.remember(job.tenant, job.id, link)

    async def _fail(self, job: Job, error: SessileError) -> None:
        """End a response whose last call of an engine never became an answer; the turn before it
        has been recorded, and is now stored as the response's."""
        turn = job.turn
        assert turn is not None
        job.failure = error
        job.pending += job.stream.fail(error, self._clock())
        if not job.asked.store:
            return
        self._keep(job, turn)
        turn.receipt.outcome = error.code
        end, record = written(turn, None)
        end = msgspec.structs.replace(
            end, fence=None, prompt_tokens=None, cached_tokens=None, completion_tokens=None
        )
        try:
            await self._store.commit_turn(end, record)
        except StoreError as lost:
            log.warning("response was not stored turn=%s why=%r", turn.id, lost.message)


def _next(job: Job, steps: Steps) -> TurnRequest:
    """The engine's next turn; the first goes on from what was told elsewhere."""
    if job.opened:
        return steps.next(job.stream.response["output"], job.session)
    request = steps.next(steps.made, None)
    return msgspec.structs.replace(request, told=job.told) if job.told else request


async def _run(steps: Steps, calls: list[dict[str, Any]], job: Job) -> None:
    """Tell of the MCP calls that the model has made, run them, and tell what came of them."""
    await job.tell()
    await steps.run(calls)
    for call in calls:
        job.stream.settle(call, job.pending)
    await job.tell()


async def _rest(turn: Turn, start: bytes) -> bytes:
    parts = [start]
    while chunk := await turn.read():
        parts.append(chunk)
    return b"".join(parts)
