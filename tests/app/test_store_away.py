"""Routers and their store: several agree through it, and none of them needs it to serve."""

import asyncio
import signal
from typing import Any

import pytest

from sessile.sessions.record import SessionKey

CHAT = "/v1/chat/completions"
ASK: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}


async def turn(http, router, session="s"):
    """One turn of a named session."""
    return await http.post(router.url + CHAT, json=ASK, headers={"x-session-id": session})


async def ready(http, router):
    """What `/ready` says."""
    return (await http.get(router.url + "/ready")).json()


async def test_two_routers_agree_on_a_session(start, http, store):
    """A session's turns alternate between routers and stay at one replica, without a rebind."""
    one = await start(engines=2, store=store)
    two = await start(beside=one, store=store)
    for number in range(8):
        session = f"s{number}"
        replies = [await turn(http, router, session) for router in (one, two, one)]
        assert len({reply.headers["x-sessile-replica"] for reply in replies}) == 1
        assert [reply.headers["x-sessile-reason"] for reply in replies] == ["new", "bound", "bound"]


async def test_a_new_session_that_two_routers_meet_at_once_is_claimed_once(start, http, store):
    """Both ask to bind it; what the store answers holds for both."""
    one = await start(engines=2, store=store)
    two = await start(beside=one, store=store)
    for number in range(8):
        replies = await asyncio.gather(
            *(turn(http, router, f"s{number}") for router in (one, two) for _ in range(3))
        )
        assert len({reply.headers["x-sessile-replica"] for reply in replies}) == 1


async def test_a_conversation_is_recognised_by_another_router(start, http, store):
    """Lineage is kept where every router can see it."""
    one = await start(engines=2, store=store)
    two = await start(beside=one, store=store)
    for engine in one.engines.values():
        engine.says("the reply")
    first = await http.post(one.url + CHAT, json=ASK)
    longer = [
        *ASK["messages"],
        {"role": "assistant", "content": "the reply"},
        {"role": "user", "content": "more"},
    ]
    await asyncio.sleep(0.05)  # the end of a stateless turn is written a few milliseconds later
    second = await http.post(two.url + CHAT, json={**ASK, "messages": longer})
    assert second.headers["x-sessile-session"] == first.headers["x-sessile-session"]


async def test_a_receipt_is_found_at_every_router(start, http, store):
    """Whoever served the turn."""
    one = await start(store=store)
    two = await start(beside=one, store=store)
    done = (await turn(http, one)).headers["x-sessile-turn"]
    await asyncio.sleep(0.05)
    receipt = await http.get(f"{two.url}/sessile/v1/turns/{done}/receipt")
    assert receipt.json()["replica"] == "one"


@pytest.mark.parametrize("blow", [signal.SIGKILL, signal.SIGSTOP])
async def test_turns_go_on_without_the_store(start, http, store, redis_server, blow):
    """Redis killed or hanging: no error, no hang; known sessions stay, new ones spread alike."""
    one = await start(engines=2, store=store)
    two = await start(beside=one, store=store)
    home = (await turn(http, one)).headers["x-sessile-replica"]
    redis_server.kill() if blow is signal.SIGKILL else redis_server.pause()
    for number in range(6):
        replies = [await turn(http, router, f"new{number}") for router in (one, two)]
        assert {reply.status_code for reply in replies} == {200}
        assert len({reply.headers["x-sessile-replica"] for reply in replies}) == 1
    assert (await turn(http, one)).headers["x-sessile-replica"] == home
    told = await ready(http, one)
    assert (told["status"], told["store"]) == ("degraded", "degraded")
    page = (await http.get(one.url + "/metrics")).text
    assert "sessile_store_available 0.0" in page


async def test_without_the_store_a_session_stays_where_another_router_has_put_it(
    start, http, store, redis_server
):
    """What routers have told each other holds: no session has to begin anew elsewhere."""
    one = await start(engines=3, store=store)
    two = await start(beside=one, store=store)
    await two.until(lambda: one.app.flow.routers == two.app.flow.routers == 2)
    homes = {}
    for number in range(8):
        session = f"s{number}"
        homes[session] = (await turn(http, one, session)).headers["x-sessile-replica"]
    key = SessionKey("default", "m", "s7")
    await two.until(lambda: two.app.standings.get(key) is not None)
    redis_server.kill()
    for session, home in homes.items():
        reply = await turn(http, two, session)
        assert reply.headers["x-sessile-replica"] == home
    redis_server.start()
    await two.until(lambda: two.app.store.available)
    assert (await turn(http, two, "s7")).headers["x-sessile-replica"] == homes["s7"]


async def test_sessions_bind_again_when_the_store_comes_back_empty(
    start, http, store, redis_server
):
    """After the restart the session is where it was, and another router learns it."""
    one = await start(engines=2, store=store)
    home = (await turn(http, one)).headers["x-sessile-replica"]
    redis_server.kill()
    await turn(http, one)
    await one.until(lambda: not one.app.store.available)
    redis_server.start()
    await one.until(lambda: one.app.store.available)
    assert (await turn(http, one)).headers["x-sessile-replica"] == home
    two = await start(beside=one, store=store)
    reply = await turn(http, two)
    assert (reply.headers["x-sessile-replica"], reply.headers["x-sessile-reason"]) == (
        home,
        "bound",
    )


async def test_a_long_turn_keeps_its_binding(start, http, store):
    """A turn that outlasts the binding's lifetime renews it: the session is still bound after."""
    router = await start(engines=2, store=store, sessions={"binding_ttl_s": 2.0, "confirm_s": 0})
    home = (await turn(http, router)).headers["x-sessile-replica"]
    gate = asyncio.Event()
    router.engines[home].plays("slow", gate)
    asked = asyncio.create_task(
        http.post(router.url + CHAT, json={**ASK, "stream": True}, headers={"x-session-id": "s"})
    )
    await router.until(lambda: router.engines[home].running == 1)
    await asyncio.sleep(3.0)
    other = await start(beside=router, store=store)
    reply = await turn(http, other)
    gate.set()
    await asked
    assert reply.headers["x-sessile-replica"] == home
    assert reply.headers["x-sessile-reason"] == "bound"


async def test_native_sessions_say_that_the_store_is_away(start, http, store, redis_server):
    """What only the store knows is a 503 in the protocol's shape, not an empty answer."""
    router = await start(store=store)
    await turn(http, router)
    redis_server.kill()
    reply = await http.get(router.url + "/sessile/v1/sessions")
    assert reply.status_code == 503
    assert reply.json()["error"]["code"] == "store_unavailable"
