"""Responses that are there: stored ones, and those that run, at whichever router."""

import asyncio
from contextlib import suppress
from typing import Any

from sessile.api.responses import Responses
from sessile.api.responses_record import read_accepted, response_in
from sessile.errors import InvalidRequest, ResponseNotFound, TurnNotFound
from sessile.event_feed import kind_of

_CANCEL_S = 5.0
_RUNNING = ("queued", "in_progress")


class KeptResponses:
    """Finds, follows, cancels and deletes responses. One a router, made by `responses_routes`."""

    def __init__(self, responses: Responses) -> None:
        self._responses = responses
        self._store = responses.store
        self._turns = responses.turns

    async def find(self, tenant: str, response: str) -> dict[str, Any]:
        """A stored response, or as much as was told of one that runs. Raises `ResponseNotFound`."""
        if self._turns.writer.find(tenant, response) is None:
            record = await self._store.get_turn(tenant, response)
            if record is not None and record.response is not None:
                return record.response
        found = await self._newest(tenant, response)
        if found is None:
            raise _unknown(response)
        return found

    async def given(self, tenant: str, response: str) -> list[dict[str, Any]]:
        """The items that a response was given itself, whether it is stored or runs; those before
        them are its parent's. Raises `ResponseNotFound`."""
        live = self._turns.writer.find(tenant, response)
        if live is None:
            stored = await self._store.get_turn(tenant, response)
            if stored is not None and stored.response is not None:
                return stored.input_items
        standing = live or await self._store.events.look(tenant, response)
        if standing is None:
            raise _unknown(response)
        asked = read_accepted(standing.accept.record).asked
        return (await self._responses.contexts.made_whole(tenant, asked)).items

    async def check(self, tenant: str, response: str, after: int) -> None:
        """Whether its events can be followed from there. Raises `ResponseNotFound`, and
        `InvalidRequest` for a number beyond them, or where they are not kept (any more)."""
        try:
            await self._turns.feed.check(tenant, response, after)
        except TurnNotFound as error:
            await self.find(tenant, response)
            raise InvalidRequest(
                f"the events of response {response!r} are not kept; fetch it without stream",
                param="stream",
            ) from error

    async def cancel(self, tenant: str, response: str) -> dict[str, Any]:
        """Stop a response that runs in the background, at whichever router; its object afterwards.

        Cancelling again changes nothing. Raises `ResponseNotFound`, and `InvalidRequest` for one
        that has ended, or that ends with its client.
        """
        found = await self.find(tenant, response)
        status = found["status"]
        if not found.get("background"):
            raise InvalidRequest(
                f"response {response!r} is not in the background: it ends with its connection",
                param="response_id",
            )
        if status == "cancelled":
            return found
        if status not in _RUNNING:
            raise InvalidRequest(
                f"response {response!r} has ended already: it is {status}", param="response_id"
            )
        return await self.stop(tenant, response)

    async def stop(self, tenant: str, response: str) -> dict[str, Any]:
        """Stop a response that runs by itself, in the background or since its client may come and
        go; its object afterwards. One that has ended stays as it is. Raises `ResponseNotFound`."""
        live = self._turns.writer.find(tenant, response)
        if live is not None:
            live.cancel()
        else:
            await self._store.events.cancel(tenant, response)
        with suppress(TimeoutError):
            async with asyncio.timeout(_CANCEL_S):
                async for _ in self._turns.feed.follow(tenant, response, -1):
                    pass
        return await self.find(tenant, response)

    async def delete(self, tenant: str, response: str) -> None:
        """Forget a response that has ended; what follows it can then not be continued.

        Raises `ResponseNotFound`, and `InvalidRequest` for one that is still being made.
        """
        if (await self.find(tenant, response))["status"] in _RUNNING:
            raise InvalidRequest(
                f"response {response!r} is still being made: cancel it first", param="response_id"
            )
        if (live := self._turns.writer.find(tenant, response)) is not None:
            self._turns.writer.forget(live)
        self._responses.forget(tenant, response)
        await self._store.events.forget(tenant, response)
        await self._store.delete_turn(tenant, response)

    async def _newest(self, tenant: str, response: str) -> dict[str, Any] | None:
        """The newest object that was told of a response whose events are kept; None for none."""
        live = self._turns.writer.find(tenant, response)
        log = self._store.events
        if live is not None:
            record, ended, upto = live.accept.record, live.ended, live.next
        else:
            standing = await log.look(tenant, response)
            if standing is None:
                return None
            record, ended, upto = standing.accept.record, standing.state == "ended", standing.next
        after = upto - 2 if ended else -1
        told = live.since(after) if live is not None else None
        if told is None and (page := await log.read(tenant, response, after)) is not None:
            told = page.events
        for _, body in reversed(told or ()):
            if (found := response_in(kind_of(body), body)) is not None:
                return found
        accepted = read_accepted(record)
        whole = accepted.skeleton(accepted.asked.model or "")
        return {**whole, "status": "in_progress" if upto else "queued"}


def _unknown(response: str) -> ResponseNotFound:
    return ResponseNotFound(f"there is no stored response {response!r}", param="response_id")
