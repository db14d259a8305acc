"""Routers of one store know of each other's work, and of what the replicas hold."""

import asyncio
import signal
from typing import Any

import pytest

from sessile.exchange import Exchange
from sessile.router.peers import News
from sessile.router.scheduler import Limits, Scheduler
from sessile.sessions.binding import Standings
from sessile.sessions.record import SessionKey

CHAT = "/v1/chat/completions"
BODY = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
S = SessionKey("default", "m", "s")


def outlook(router: Any, replica: str = "one") -> Any:
    """What the router expects of a replica."""
    return router.app.pool.get(replica).outlook


async def turn(http: Any, router: Any, session: str = "s", text: str = "hi") -> Any:
    """One turn of a named session."""
    body = {"model": "m", "messages": [{"role": "user", "content": text}]}
    return await http.post(router.url + CHAT, json=body, headers={"x-session-id": session})


async def meet(*routers: Any) -> None:
    """Wait until each has heard of another."""
    for router in routers:
        await router.until(lambda router=router: router.app.flow.routers == len(routers))


class Peer:
    """A router's scheduler and its exchange, without turns of its own."""

    def __init__(self, router: Any) -> None:
        self.scheduler = Scheduler(Limits(), peers=True)
        store = router.app.flow._store
        self.exchange = Exchange(router.app.pool, store, Standings(), self.scheduler)

    async def tell(self, *news: News) -> None:
        """Say so in the next message."""
        self.scheduler.live.news.extend(news)
        await self.exchange.once()


async def test_two_routers_see_each_others_running_turns(start, http, redis_server):
    """A turn at one router is foreign work at the other, until it ends."""
    store = {"url": redis_server.url}
    one = await start(store=store)
    two = await start(beside=one, store=store)
    await meet(one, two)
    hold = asyncio.Event()
    one.engine.plays(hold, "done")
    running = asyncio.create_task(http.post(one.url + CHAT, json=BODY))
    await two.until(lambda: outlook(two).foreign_running == 1)
    assert outlook(two).foreign_work > 0 and outlook(one).foreign_running == 0
    assert outlook(two).holdings.live_tokens == outlook(one).holdings.live_tokens > 0
    hold.set()
    await running
    await two.until(lambda: outlook(two).foreign_running == 0)
    assert outlook(two).foreign_work == 0
    await two.until(lambda: outlook(two).paused == outlook(one).paused != set())


async def test_what_one_router_has_sent_the_other_expects_to_be_cached(start, http, redis_server):
    """A session's next turn at another router is predicted from what the first one saw, and so is
    another session's that begins with the same prompt."""
    store = {"url": redis_server.url}
    one = await start(store=store)
    two = await start(beside=one, store=store)
    await meet(one, two)
    prompt = "many words " * 1000
    await turn(http, one, text=prompt)
    await two.until(lambda: outlook(two).paused == outlook(one).paused != set())
    assert outlook(two).holdings.tokens == outlook(one).holdings.tokens > 0
    reply = await turn(http, two, "another", prompt + " and more")
    done = reply.headers["x-sessile-turn"]
    receipt = (await http.get(f"{two.url}/sessile/v1/turns/{done}/receipt")).json()
    assert receipt["predicted_cached_tokens"] > 0


async def test_a_session_that_moves_at_one_router_is_followed_at_once(start, http, redis_server):
    """A binding that another router has changed is asked for again, though it was confirmed."""
    store = {"url": redis_server.url}
    one = await start(engines=2, store=store)
    two = await start(beside=one, store=store)
    await meet(one, two)
    home = (await turn(http, one)).headers["x-sessile-replica"]
    assert (await turn(http, two)).headers["x-sessile-replica"] == home
    away = ({"one", "two"} - {home}).pop()
    two.app.pool.drain(home)
    assert (await turn(http, two)).headers["x-sessile-replica"] == away
    standings = one.app.standings
    await one.until(lambda: standings.get(S).confirmed_at is None)
    assert (await turn(http, one)).headers["x-sessile-replica"] == away
    assert standings.get(S).binding.epoch == 2


async def test_a_session_closed_at_one_router_is_closed_at_all(start, http, redis_server):
    """Though another has just seen it open."""
    store = {"url": redis_server.url}
    one = await start(store=store)
    two = await start(beside=one, store=store)
    await meet(one, two)
    made = (await http.post(one.url + "/sessile/v1/sessions", json={"model": "m"})).json()
    session = made["session"]
    assert (await turn(http, two, session)).status_code == 200
    assert (await http.post(f"{one.url}/sessile/v1/sessions/{session}/close")).status_code == 200
    await two.until(lambda: two.app.standings.get(SessionKey("default", "m", session)) is None)
    assert (await turn(http, two, session)).status_code == 410
    assert outlook(two).holdings.live_tokens == 0


async def test_a_router_that_stops_telling_is_forgotten(start, redis_server):
    """Its report lives for a few seconds; then its work, and what ran there, is nobody's."""
    one = await start(store={"url": redis_server.url})
    pool = (await start(beside=one)).app.pool  # of a store of its own: it tells nothing here
    pool.get("one").outlook.pending_work = 500.0
    gone = Peer(one)
    gone.exchange._pool = pool
    await gone.tell(News("runs", S.text, "one", outlook(one).incarnation, 700))
    await one.until(lambda: outlook(one).foreign_work == 500.0)
    assert outlook(one).holdings.live_tokens == 700
    await one.until(lambda: outlook(one).foreign_work == 0)
    assert outlook(one).holdings.live_tokens == 0
    assert not one.app.flow.scheduler.live.peers


async def test_a_router_that_is_alone_tells_nothing(start, http, redis_server):
    """There is nobody to hear it: no news are made, and none lie in the store."""
    one = await start(store={"url": redis_server.url})
    await turn(http, one)
    assert not one.app.flow.scheduler.live.news
    assert redis_server.ask("EXISTS sessile:{reports}:news").startswith(":0")


async def test_news_that_make_no_sense_are_passed_over(start, http, redis_server):
    """A replica that is not known here, another start of one that is, bytes that are no news, an
    id that no wire carries: the exchange goes on, and so do turns."""
    one = await start(store={"url": redis_server.url})
    peer, store = Peer(one), one.app.flow._store
    now = outlook(one).incarnation
    await store.exchange("odd", b"no report", 60.0, news=b"no news")
    await peer.tell(
        News("runs", S.text, "unknown", "1", 10),
        News("runs", S.text, "one", "an earlier start", 10),
        News("runs", "no key", "one", now, 30),
        News("runs", "\ud800", "one", now, 10),
    )
    await peer.tell(News("pauses", S.text, "one", now, 10, kind="tool"), News("idle", "stranger"))
    await peer.tell(News("runs", S.text, "one", now, 700))
    await one.until(lambda: outlook(one).holdings.live_tokens == 730)
    assert (await turn(http, one)).status_code == 200


@pytest.mark.parametrize("blow", [signal.SIGKILL, signal.SIGSTOP])
async def test_news_go_on_after_the_store_was_away(start, http, redis_server, blow):
    """Turns meanwhile are told when it is back, empty or not; no turn fails."""
    store = {"url": redis_server.url, "timeout_s": 0.5, "retry_after_s": 0.1}
    one = await start(store=store)
    two = await start(beside=one, store=store)
    await meet(one, two)
    await turn(http, one, "before")
    redis_server.kill() if blow is signal.SIGKILL else redis_server.pause()
    await one.until(lambda: not one.app.store.available)
    assert (await turn(http, one, "meanwhile")).status_code == 200
    redis_server.start() if blow is signal.SIGKILL else redis_server.resume()
    session = SessionKey("default", "m", "meanwhile").text
    await two.until(lambda: outlook(two).holdings.is_live(session))
    assert (await turn(http, two, "meanwhile")).status_code == 200
