"""Two turns at once on one session: queued, forked or refused, as its requests declare."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx2
import pytest

from scripted_engine import STOP


@pytest.fixture
async def http() -> AsyncIterator[httpx2.AsyncClient]:
    """A client; tests give whole URLs."""
    async with httpx2.AsyncClient(timeout=60, trust_env=False) as http:
        yield http


class Asking:
    """One session's client, whose requests all declare the same."""

    def __init__(self, http: httpx2.AsyncClient, url: str, when_busy: str | None) -> None:
        self._http, self._url = http, url
        self._headers = {"X-Session-ID": "one"}
        if when_busy is not None:
            self._headers["X-Sessile-When-Busy"] = when_busy

    async def respond(self, text: str, **fields: Any) -> httpx2.Response:
        """A stored response."""
        body = {"model": "m", "input": text, **fields}
        return await self._http.post(self._url + "/v1/responses", json=body, headers=self._headers)

    async def chat(self, text: str) -> httpx2.Response:
        """A turn that carries its whole history."""
        body = {"model": "m", "messages": [{"role": "user", "content": text}]}
        return await self._http.post(
            self._url + "/v1/chat/completions", json=body, headers=self._headers
        )


async def _held(router: Any, turn: Any) -> tuple[asyncio.Event, asyncio.Task[httpx2.Response]]:
    """A turn that runs until the event is set."""
    go = asyncio.Event()
    router.engine.plays("Hel", go, "lo", STOP)
    running = asyncio.create_task(turn)
    await router.until(lambda: router.engine.running == 1)
    return go, running


async def test_a_turn_that_is_to_be_refused_does_not_wait(start, http):
    """It is told 409 while the other runs, and is served once that has ended."""
    router = await start()
    asking = Asking(http, router.url, "refuse")
    first = (await asking.respond("Hi")).json()["id"]
    go, running = await _held(router, asking.respond("long", previous_response_id=first))
    refused = await asking.respond("beside", previous_response_id=first)
    assert refused.status_code == 409 and refused.json()["error"]["code"] == "session_busy"
    assert not running.done()
    go.set()
    assert (await running).status_code == 200
    assert (await asking.respond("after", previous_response_id=first)).status_code == 200


async def test_a_turn_that_is_to_fork_runs_beside_as_a_child(start, http):
    """Its session is another, whose parent is the one that is busy; what follows it stays there."""
    router = await start()
    asking = Asking(http, router.url, "fork")
    first = await asking.respond("Hi")
    parent = first.headers["x-sessile-session"]
    previous = first.json()["id"]
    go, running = await _held(router, asking.respond("long", previous_response_id=previous))
    forked = await asking.respond("beside", previous_response_id=previous)
    assert forked.status_code == 200 and not running.done()
    child = forked.headers["x-sessile-session"]
    assert child != parent
    shown = (await http.get(f"{router.url}/sessile/v1/sessions/{child}")).json()
    assert shown["parent"] == parent
    following = {"model": "m", "input": "on", "previous_response_id": forked.json()["id"]}
    followed = await http.post(f"{router.url}/v1/responses", json=following)
    assert followed.headers["x-sessile-session"] == child and not running.done()
    go.set()
    assert (await running).headers["x-sessile-session"] == parent


async def test_a_turn_that_is_to_queue_waits_even_with_its_whole_history(start, http):
    """Chat turns run side by side otherwise."""
    router = await start()
    asking = Asking(http, router.url, "queue")
    go, running = await _held(router, asking.chat("long"))
    beside = await Asking(http, router.url, None).chat("beside")
    assert beside.status_code == 200
    asked = len(router.engine.asked)
    queued = asyncio.create_task(asking.chat("queued"))
    refused = await Asking(http, router.url, "refuse").chat("not now")
    assert refused.status_code == 409
    assert len(router.engine.asked) == asked and not queued.done()
    go.set()
    assert [(await turn).status_code for turn in (running, queued)] == [200, 200]


async def test_a_conversation_is_refused_but_never_forked(start, http):
    """It has one line."""
    router = await start()
    made = (await http.post(f"{router.url}/v1/conversations", json={})).json()["id"]
    asking = Asking(http, router.url, "refuse")
    go, running = await _held(router, asking.respond("long", conversation=made))
    refused = await asking.respond("beside", conversation=made)
    assert refused.status_code == 409
    go.set()
    assert (await running).status_code == 200
    forked = await Asking(http, router.url, "fork").respond("Hi", conversation=made)
    assert forked.status_code == 400
    assert forked.json()["error"]["param"] == "x-sessile-when-busy"
