"""A client that does not give up, and counts: one turn of the Responses API, followed through lost
connections, dead routers and its own hang-ups until its last event.

What it is told is checked against what a deterministic engine says. It knows nothing of who breaks
what (`chaos`).
"""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from random import Random
from typing import Any

import httpx2
import msgspec

_PAUSE_S = (0.05, 0.3)
_GIVEN_UP_S = 60.0
_ENDS = ("response.completed", "response.incomplete", "response.failed")
_NOT_YET = (404, 409, 500, 502, 503, 504)  # 404 too: a router that has just come up


class Told(msgspec.Struct):
    """What one turn's client was told. `wrong` says what was not as it must be, "" nothing.

    Each time it came back: `replays` are the seconds until it was told again what it knew, and
    `resumes` those until it was told more, which may have to be made first.
    """

    key: str
    response: str | None = None
    text: str = ""
    last: int = -1
    ends: list[str] = []
    error: str | None = None
    connections: int = 0
    forgotten: int = 0
    replays: list[float] = []
    resumes: list[float] = []
    wrong: str = ""

    def hear(self, event: dict[str, Any]) -> None:
        """Read one event."""
        number, kind = event.get("sequence_number"), event["type"]
        if kind == "error" or number is None:
            return  # of this connection, not of the turn
        if number != self.last + 1:
            self.fault(f"event {number} came after {self.last}")
        if self.ends:
            self.fault(f"{kind} came after the last event")
        self.last = number
        if kind == "response.created":
            self.response = event["response"]["id"]
        elif kind == "response.output_text.delta":
            self.text += event["delta"]
        elif kind in _ENDS:
            self.ends.append(kind)
            self.error = ((event["response"].get("error") or {}).get("code")) or self.error

    def fault(self, what: str) -> None:
        """Something is not as it must be; the first of all is kept."""
        self.wrong = self.wrong or what


class Client:
    """Sends turns to whichever of `urls` it likes. It hangs up in the middle of a stream with a
    chance of `hangs_up`, to come back a moment later."""

    def __init__(
        self, http: httpx2.AsyncClient, urls: Sequence[str], random: Random, hangs_up: float
    ) -> None:
        self._http = http
        self._urls = urls
        self._random = random
        self._hangs_up = hangs_up

    async def turn(self, key: str, text: str) -> Told:
        """One turn, to its last event; `text` is what the engine is to say of it."""
        told = Told(key)
        until = time.monotonic() + _GIVEN_UP_S
        while not told.ends:
            if time.monotonic() > until:
                told.fault("no last event came")
                break
            told.connections += 1
            with suppress(httpx2.TransportError):
                if told.response is not None:
                    await self._time_replay(told)
                await self._listen(told, text)
            if not told.ends:
                await asyncio.sleep(self._random.uniform(*_PAUSE_S))
        said = f"echo: {text}"
        if told.ends == ["response.completed"] and told.text != said:
            told.fault(f"it was told {told.text!r} for {said!r}")
        elif not said.startswith(told.text):
            told.fault(f"it was told {told.text!r}, which does not begin {said!r}")
        return told

    async def replay(self, told: Told) -> None:
        """Everything once more, from anywhere: it must be the same."""
        again = Told(told.key)
        again.response, again.last = told.response, 0
        if told.response is None:
            return
        with suppress(httpx2.TransportError):
            async with self._http.stream(**self._request(again)) as answer:
                if answer.status_code != 200:
                    told.fault(f"a replay was answered with {answer.status_code}")
                    return
                async for event in _events(answer):
                    again.hear(event)
        if (again.wrong, again.last, again.text, again.ends) != (
            "", told.last, told.text, told.ends,
        ):  # fmt: skip
            told.fault(f"a replay told {again.wrong or again.text!r} up to {again.last}")

    async def _time_replay(self, told: Told) -> None:
        """Have the first event told again, on a connection of its own."""
        began = time.monotonic()
        url = f"{self._url()}/v1/responses/{told.response}?stream=true"
        async with self._http.stream("GET", url) as answer:
            async for _ in _events(answer):
                told.replays.append(time.monotonic() - began)
                return

    async def _listen(self, told: Told, text: str) -> None:
        """One connection."""
        began = time.monotonic()
        comes_back = told.response is not None
        stays = self._random.randrange(60) if self._random.random() < self._hangs_up else None
        async with self._http.stream(**self._request(told, text)) as answer:
            if answer.status_code in _NOT_YET:
                told.forgotten += answer.status_code == 404
                return
            if answer.status_code != 200:
                body = (await answer.aread())[:200]
                told.fault(f"it was answered {answer.status_code} {body!r}")
                told.ends.append("refused")
                return
            count = 0
            async for event in _events(answer):
                told.hear(event)
                if comes_back and not count:
                    told.resumes.append(time.monotonic() - began)
                count += 1
                if count == stays:
                    return

    def _request(self, told: Told, text: str = "") -> dict[str, Any]:
        """The turn, or what is left of it."""
        url = f"{self._url()}/v1/responses"
        if told.response is not None:
            left = f"{url}/{told.response}?stream=true&starting_after={told.last}"
            return {"method": "GET", "url": left}
        return {
            "method": "POST",
            "url": url,
            "json": {"model": "fake", "input": text, "stream": True},
            "headers": {"idempotency-key": told.key, "x-sessile-on-disconnect": "detach"},
        }

    def _url(self) -> str:
        return self._random.choice(self._urls)


async def _events(answer: httpx2.Response) -> AsyncIterator[dict[str, Any]]:
    async for line in answer.aiter_lines():
        if line.startswith("data: {"):
            yield msgspec.json.decode(line[6:])
