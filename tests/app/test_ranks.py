"""The router before a server with data-parallel ranks: each is a replica of its own."""

import asyncio

import httpx2
import pytest

from sessile.lab.fake_replica import FakeReplica, Fault

CHAT, REPLICAS = "/v1/chat/completions", "/sessile/v1/replicas"
LONG = "Remember all of this. " * 200
FAST = {"probe_interval_s": 0.05}


@pytest.fixture
def fake():
    """A server of two ranks."""
    return FakeReplica(model="m", ranks=2)


@pytest.fixture
async def router(start, fake):
    """A router before it."""
    router = await start([fake], kind="sglang", router=FAST)
    await router.until(lambda: len(router.app.pool.candidates("m")) == 2)
    return router


@pytest.fixture
async def http(router):
    """A client of the router."""
    async with httpx2.AsyncClient(base_url=router.url, timeout=30, trust_env=False) as client:
        yield client


async def turn(http, session, *texts, **fields):
    """One turn of a conversation that began with a long prompt; the replica that took it."""
    said = [{"role": "system", "content": LONG + session}]
    said += [{"role": "user", "content": text} for text in texts]
    body = {"model": "m", "messages": said, **fields}
    reply = await http.post(CHAT, json=body, headers={"x-session-id": session})
    assert reply.status_code == 200, reply.text
    return reply.headers["x-sessile-replica"]


async def listed(http):
    """Each replica's state, as the router tells it."""
    found = (await http.get(REPLICAS)).json()["replicas"]
    return {each["id"]: each["state"] for each in found}


async def test_a_session_stays_at_the_rank_that_holds_its_cache(fake, http):
    """Every turn carries the rank of the first, and finds there what that one left."""
    for session in ("a", "b", "c"):
        homes = {await turn(http, session, *"1234"[:n]) for n in range(1, 5)}
        assert len(homes) == 1
        mine = [seen for seen in fake.seen if session in seen.body["session_id"]]
        assert {f"one@{seen.rank}" for seen in mine} == homes
        assert all("x-data-parallel-rank" in seen.headers for seen in mine)
        assert all(seen.cached_tokens > 1000 for seen in mine[1:]) and len(mine) == 4


async def test_sessions_are_spread_over_the_ranks(fake, http):
    """They come at once, and no rank is given more than its share."""
    fake.always = Fault(pause_s=0.1)
    homes = await asyncio.gather(*(turn(http, f"s{n}", "hi") for n in range(4)))
    assert sorted(homes) == ["one@0", "one@0", "one@1", "one@1"]


async def test_each_rank_shows_a_load_of_its_own(fake, router, http):
    """The server, the rank, and what runs at that rank alone."""
    fake.always = Fault(hang=True)
    running = asyncio.create_task(turn(http, "s", "hi"))
    await router.until(lambda: any(r.load and r.load.running for r in router.app.pool))
    found = (await http.get(REPLICAS)).json()["replicas"]
    running.cancel()
    (busy,) = [each["id"] for each in found if each["in_flight"]]
    told = {each["id"]: (each["server"], each["rank"], each["load"]["running"]) for each in found}
    assert told == {"one@0": ("one", 0, busy == "one@0"), "one@1": ("one", 1, busy == "one@1")}


async def test_the_drain_of_a_server_is_of_all_its_ranks(router, http):
    """They come back together too."""
    drained = (await http.post(f"{REPLICAS}/one/drain")).json()
    assert (drained["id"], drained["state"], drained["in_flight"]) == ("one", "draining", 0)
    assert [each["id"] for each in drained["ranks"]] == ["one@0", "one@1"]
    assert await listed(http) == {"one@0": "draining", "one@1": "draining"}
    assert (await http.post(f"{REPLICAS}/one/resume")).json()["state"] == "ready"
    assert await listed(http) == {"one@0": "ready", "one@1": "ready"}


async def test_a_rank_may_drain_alone_and_its_sessions_move_to_another(fake, router, http):
    """The session's prompt is run at the other rank before its next turn asks for it."""
    home = await turn(http, "s", "hi")
    other = {"one@0": "one@1", "one@1": "one@0"}[home]
    await http.post(f"{REPLICAS}/{home}/drain")
    await router.until(lambda: any(f"one@{seen.rank}" == other for seen in fake.seen))
    await router.until(lambda: fake.running == 0)
    assert await turn(http, "s", "hi", "again") == other
    assert fake.seen[-1].cached_tokens > 1000
    assert await listed(http) == {home: "draining", other: "ready"}


async def test_a_server_leaves_with_all_its_ranks_and_none_leaves_alone(router, http):
    """A rank that was taken out would come back at the next look."""
    refused = await http.delete(f"{REPLICAS}/one@1")
    assert refused.status_code == 400 and "remove one" in refused.text
    assert (await http.delete(f"{REPLICAS}/one")).status_code == 200
    assert await listed(http) == {}


@pytest.mark.parametrize("ranks", [1, 3])
async def test_a_server_with_another_number_of_ranks_is_other_replicas(fake, router, http, ranks):
    """Nothing of before is there, and its sessions go on at those that are."""
    await turn(http, "s", "hi")
    fake.restart(ranks)
    names = ["one"] if ranks == 1 else ["one@0", "one@1", "one@2"]
    await router.until(lambda: [r.id for r in router.app.pool if r.state == "ready"] == names)
    assert await turn(http, "s", "hi", "again") in names
    assert (ranks == 1) is ("x-data-parallel-rank" not in fake.seen[-1].headers)
    await asyncio.gather(*(turn(http, f"s{n}", "hi") for n in range(6)))
    assert {seen.rank for seen in fake.seen[-6:]} == set(range(ranks))


async def test_a_server_goes_down_and_comes_back_with_all_its_ranks(fake, router):
    """There is one look for all of them."""
    fake.healthy = False
    states = lambda: [replica.state for replica in router.app.pool]  # noqa: E731
    await router.until(lambda: states() == ["down", "down"])
    fake.healthy = True
    await router.until(lambda: states() == ["ready", "ready"])


async def test_an_adapter_is_loaded_at_a_server_once(fake, router, http):
    """Its ranks share it: turns at both wait for the same load, and it is let go of once."""
    fake.adapters.load_s = 0.2
    fake.always = Fault(pause_s=0.1)
    declared = {"name": "sql", "base": "m", "path": "/adapters/sql"}
    await http.post("/sessile/v1/adapters", json=declared)
    homes = await asyncio.gather(*(turn(http, f"s{n}", "hi", model="sql") for n in range(2)))
    assert sorted(homes) == ["one@0", "one@1"]
    (shown,) = (await http.get("/sessile/v1/adapters")).json()["adapters"]
    assert shown["loaded"] == ["one@0", "one@1"]
    await http.delete("/sessile/v1/adapters/sql")
    assert fake.adapters.asked == ["load sql", "unload sql"]


async def test_a_server_that_is_found_drains_and_leaves_with_all_its_ranks(
    fake, start, serve, tmp_path
):
    """A source lists servers; what they turn out to be is not its affair."""
    (_, url), (_, other) = await serve(fake), await serve()
    file = tmp_path / "replicas.toml"

    def write(name, kind, url):
        new = tmp_path / "new"
        new.write_text(f'[[replica]]\nid = "{name}"\nengine = "{kind}"\nurl = "{url}"\n')
        new.rename(file)

    write("one", "sglang", url)
    router = await start(0, discover=(f"file://{file}",), router=FAST)
    await router.until(lambda: [r.id for r in router.app.pool] == ["one@0", "one@1"])
    fake.always = Fault(hang=True)
    async with httpx2.AsyncClient(base_url=router.url, timeout=30, trust_env=False) as http:
        running = asyncio.create_task(turn(http, "s", "hi"))
        await router.until(lambda: fake.running == 1)
        write("two", "openai", other)
        both = {"one@0": "draining", "one@1": "draining", "two": "ready"}
        await router.until(lambda: {r.id: r.state for r in router.app.pool} == both)
        await asyncio.sleep(0.6)
        assert len(router.app.pool) == 3  # one of the two has a turn
        running.cancel()
        await router.until(lambda: [r.id for r in router.app.pool] == ["two"])
