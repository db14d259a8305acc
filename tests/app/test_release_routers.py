"""Swaps at several routers, and without the store by which they agree."""

import asyncio

import httpx2

from swap_site import NAMES, RELEASES


async def test_a_second_router_agrees(make_site, redis_server):
    """Turns that alternate between two, before, while and after the canary grows and is rolled
    back, see one variant a conversation; what one has counted the other adds."""
    store = {"url": redis_server.url, "timeout_s": 2.0}
    site = await make_site(routers=2, store=store)
    one, two = site.clients
    await site.of("old")
    await site.swap(percent=30)
    first = await site.of(*NAMES)
    assert await site.of(*NAMES, http=two) == first
    assert await site.of("old", http=two) == ["m"]
    await site.command("/m/share", {"percent": 70}, http=two)
    assert await site.of(*NAMES, http=two) == first == await site.of(*NAMES)
    for site.http in (one, two):
        assert (await site.sides())["m"]["turns"] == 4 * first.count("m") + 1
    await site.command("/m/roll-back", {}, http=two)
    assert set(await site.of(*NAMES)) == {"m"} == set(await site.of(*NAMES, http=two))
    await site.swap(percent=100)
    assert set(await site.of(*NAMES, http=two)) == {"m"} == set(await site.of(*NAMES))


async def test_turns_go_on_while_a_swap_begins(make_site, redis_server):
    """Sessions that begin at either router, in the moment when it comes into force too, never see
    two variants, though it is begun in the middle of their turns."""
    site = await make_site(routers=2, store={"url": redis_server.url, "timeout_s": 2.0})
    seen = {}
    done = False

    async def converse(name):
        while not done:
            for http in site.clients:
                (variant,) = await site.of(name, http=http)
                seen.setdefault(name, set()).add(variant)
            await asyncio.sleep(0.02)

    async def keep_coming():
        number = 0
        async with asyncio.TaskGroup() as group:
            while not done:
                group.create_task(converse(f"c{number}"))
                number += 1
                await asyncio.sleep(0.15)

    coming = asyncio.create_task(keep_coming())
    await asyncio.sleep(0.5)
    await site.swap(percent=50)
    await asyncio.sleep(0.5)
    done = True
    await coming
    assert all(len(variants) == 1 for variants in seen.values()), seen
    assert set().union(*seen.values()) == {"m", "m@green"}


async def test_without_the_store_the_last_word_holds(make_site, redis_server):
    """Turns go on, each session where it was; a change is refused, and says why."""
    site = await make_site(store={"url": redis_server.url, "timeout_s": 0.5, "retry_after_s": 0.1})
    await site.of("old")
    await site.swap(percent=50)
    before = await site.of(*NAMES[:10])
    redis_server.stop()
    assert await site.of(*NAMES[:10]) == before
    assert await site.of("old") == ["m"]
    new = await site.of(*[f"n{n}" for n in range(10)])
    assert set(new) == {"m", "m@green"}
    assert await site.of(*[f"n{n}" for n in range(10)]) == new
    refused = await site.http.post(RELEASES + "/m/finish", json={})
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "store_unavailable")
    assert "the session store is away" in refused.json()["error"]["message"]
    assert (await site.http.get(RELEASES)).json()["releases"][0]["state"] == "under_way"


async def test_a_router_that_comes_later_knows_the_release(make_site, start, redis_server):
    """Before it serves its first turn; and a store that has lost it is told it again."""
    site = await make_site(store={"url": redis_server.url, "timeout_s": 2.0})
    await site.swap()
    specs = [replica.spec for replica in site.routers[0].app.pool]
    late = await start(0, store={"url": redis_server.url, "timeout_s": 2.0})
    assert late.app.pool.releases.get("m").target == "m@green"
    for spec in specs:
        late.app.pool.add(spec)
    await late.until(lambda: all(r.state == "ready" for r in late.app.pool))
    async with httpx2.AsyncClient(base_url=late.url, timeout=30, trust_env=False) as http:
        assert await site.of("s", http=http) == ["m@green"] == await site.of("s")
    await late.app.store._link.run(("FLUSHALL",))
    await late.app.releases.once()
    assert set(await late.app.store.releases()) == {"m"}
