"""A replica that answers health and serves nothing: taken out, told, and taken in again."""

import asyncio
import itertools
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import httpx2
import pytest

from sessile.lab.fake_replica import Fault, serve_fake
from sessile.router.replica import ReplicaSpec

CHAT = "/v1/chat/completions"


@pytest.fixture
async def site(start) -> AsyncIterator[Any]:
    """A router that is quick to doubt, before two replicas that speak as SGLang; `bad` is the one
    that is to go wrong."""
    async with AsyncExitStack() as stack:
        router = await start(router={"silent_timeout_s": 0.5, "probe_interval_s": 0.05})
        await router.app.pool.remove("one")
        for name in ("good", "bad"):
            fake = await stack.enter_async_context(serve_fake(model="m"))
            setattr(router, name, fake)
            router.app.pool.add(ReplicaSpec(id=name, engine="sglang", url=fake.url))
        await router.until(lambda: len(router.app.pool.candidates("m")) == 2)
        yield router
        await router.until(lambda: not router.good.running + router.bad.running)
        assert all(replica.in_flight == 0 for replica in router.app.pool)


def ask(session: str, **fields: Any) -> dict[str, Any]:
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}], **fields}
    return {"json": body, "headers": {"x-session-id": session}}


async def shown(site: Any, http: httpx2.AsyncClient, name: str) -> dict[str, Any]:
    """The replica as `sessile status` gets it."""
    listed = (await http.get(f"{site.url}/sessile/v1/replicas")).json()["replicas"]
    found: dict[str, Any] = next(each for each in listed if each["id"] == name)
    return found


def down(site: Any, name: str = "bad") -> bool:
    return bool(site.app.pool.get(name).state == "down")


FAULTS = (Fault(status=500), Fault(status=503), Fault(drop_after=0), Fault(hang=True))


@pytest.mark.parametrize(
    ("fault", "stream"), [(fault, stream) for fault in FAULTS for stream in (True, False)]
)
async def test_it_costs_no_session_its_turn(site, http, fault, stream):
    """Another answers its turns; it is taken out, with a reason for who looks, and is sent nothing
    but trials until it serves again."""
    site.bad.always = fault
    turns = [
        http.post(site.url + CHAT, **ask(f"s{n}", stream=stream, max_tokens=4)) for n in range(8)
    ]
    for reply in await asyncio.gather(*turns):
        assert reply.status_code == 200
        assert "echo" in reply.text and "stream_broken" not in reply.text
    if not down(site):  # one that failed its first turn only is not doubted yet
        await http.post(site.url + CHAT, **ask("one more", stream=stream))
    await site.until(lambda: down(site))
    why = (await shown(site, http, "bad"))["why"]
    assert why.startswith("it says that it is healthy, but serves nothing: ")
    seen = len(site.bad.seen)
    for n in range(8):
        again = await http.post(site.url + CHAT, **ask(f"s{n}"))
        assert again.headers["x-sessile-replica"] == "good"
    assert all(each.body["max_tokens"] == 1 for each in site.bad.seen[seen:])
    site.bad.always = Fault()
    await site.until(lambda: not down(site))


async def test_of_a_server_of_ranks_only_the_one_that_serves_nothing_is_taken_out(start, http):
    """It is tried by its rank, and taken in when that serves."""
    async with serve_fake(model="m", ranks=2) as fake:
        router = await start(router={"silent_timeout_s": 0.5, "probe_interval_s": 0.05})
        await router.app.pool.remove("one")
        router.app.pool.add(ReplicaSpec(id="r", engine="sglang", url=fake.url))
        await router.until_pool(**{"r@0": "ready", "r@1": "ready"})
        fake.always = Fault(status=500, at_rank=0)
        while router.states["r@0"] == "ready":
            turns = [http.post(router.url + CHAT, **ask(f"s{n}")) for n in range(4)]
            assert [reply.status_code for reply in await asyncio.gather(*turns)] == [200] * 4
        assert router.states == {"r@0": "down", "r@1": "ready"}
        fake.always = Fault()
        await router.until_pool(**{"r@0": "ready", "r@1": "ready"})


async def test_a_replica_that_refuses_what_is_wrong_stays(site, http):
    """The fault is the client's, however often."""
    site.bad.always = site.good.always = Fault(status=400)
    for n in range(8):
        reply = await http.post(site.url + CHAT, **ask(f"s{n}"))
        assert reply.status_code == 400
    site.bad.always = site.good.always = Fault()
    assert (await http.post(site.url + CHAT, **ask("s0"))).status_code == 200
    assert not any(each.body.get("max_tokens") == 1 for each in site.bad.seen + site.good.seen)


async def test_a_replica_whose_queue_is_full_stays(site, http):
    """It refuses turns, and the trial, while it serves those that it has."""
    site.bad.fail(Fault(pause_s=4.0))
    site.bad.always = Fault(status=503)
    await site.app.pool.remove("good")
    running = asyncio.create_task(http.post(site.url + CHAT, **ask("s")))
    await site.until(lambda: site.bad.running == 1)
    for n in range(4):
        refused = await http.post(site.url + CHAT, **ask(f"s{n}"))
        assert refused.status_code in (502, 503)
    await site.until(lambda: any(each.body.get("max_tokens") == 1 for each in site.bad.seen))
    assert (await running).status_code == 200
    assert not down(site)


async def test_a_replica_that_is_long_at_work_stays(site, http):
    """It says nothing, and would not answer a trial either; but its memory fills, as it does while
    long prompts are read. Once nothing moves there, others answer."""
    await site.app.pool.remove("good")
    site.bad.used_tokens = itertools.count()
    site.bad.fail(Fault(pause_s=2.5))
    site.bad.always = Fault(hang=True)
    assert (await http.post(site.url + CHAT, **ask("s"))).status_code == 200
    assert len(site.bad.seen) == 1 and not down(site)
    waiting = asyncio.create_task(http.post(site.url + CHAT, **ask("s")))
    await site.until(lambda: site.bad.running == 1)
    site.app.pool.add(ReplicaSpec(id="good", engine="sglang", url=site.good.url))
    site.bad.used_tokens = itertools.repeat(99)
    assert (await waiting).headers["x-sessile-replica"] == "good"
    assert down(site)


async def test_one_turn_that_breaks_its_engines_takes_none_out(site, http):
    """They answer the trial."""
    site.bad.always = site.good.always = Fault(status=500)
    reply = await http.post(site.url + CHAT, **ask("s"))
    site.bad.always = site.good.always = Fault()
    assert reply.status_code == 500 and "The engine broke" in reply.text
    assert (await http.post(site.url + CHAT, **ask("s"))).status_code == 200
    assert not down(site, "bad") and not down(site, "good")


async def test_where_nobody_else_serves_a_turn_waits_on(site, http):
    """And new ones are told at once that nobody is ready."""
    await site.app.pool.remove("good")
    site.bad.fail(Fault(pause_s=6.0))
    site.bad.always = Fault(hang=True)
    turn = asyncio.create_task(http.post(site.url + CHAT, **ask("s")))
    await site.until(lambda: down(site))
    refused = await http.post(site.url + CHAT, **ask("t"))
    assert refused.status_code == 503 and refused.headers["retry-after"]
    assert (await turn).status_code == 200
    site.bad.always = Fault()
    await site.until(lambda: not down(site))
