"""Swaps while sessions run: who goes where, and that no conversation sees two variants."""

import asyncio
import time
from contextlib import AsyncExitStack

import httpx2
import pytest

from sessile.app import create_app
from sessile.errors import SessionExpired
from sessile.lab.fake_replica import FakeReplica, Fault
from sessile.router.releases import Variant, begin
from sessile.sessions.memory_store import MemoryStore
from sessile.sessions.record import SessionKey, SessionRecord
from sessile.sessions.store import StoreLimits
from sessile.settings import Settings

CHAT, RELEASES = "/v1/chat/completions", "/sessile/v1/releases"
USER = {"role": "user", "content": "hi"}


class Site:
    """Routers before the pools `blue`, in service, and `green`, on standby; `http` is a client of
    the first."""

    def __init__(self, routers, fakes, clients):
        self.routers, self.fakes, self.clients = routers, fakes, clients
        self.http = clients[0]

    async def swap(self, to="green", model="m", **fields):
        """Begin a swap, and wait until it is in force."""
        return await self.command("", {"model": model, "to": to, **fields})

    async def command(self, what, body, http=None):
        """One change, in force at all routers."""
        http = http or self.http
        answer = await http.post(RELEASES + what, json=body)
        assert answer.status_code < 300, answer.text
        for client, router in zip(self.clients, self.routers, strict=True):
            await router.until(lambda r=router: in_force(r, answer.json()))
            (shown,) = (await client.get(RELEASES)).json()["releases"]
            assert shown["state"] == answer.json()["state"]
        return answer.json()

    async def ask(self, session=None, model="m", http=None, headers=(), **fields):
        """One turn."""
        body = {"model": model, "messages": [USER], **fields}
        named = {"x-session-id": session} if session is not None else {}
        return await (http or self.http).post(CHAT, json=body, headers={**named, **dict(headers)})

    async def of(self, *sessions, **fields):
        """The variant that each session's next turn is served by; every turn succeeds."""
        found = []
        for session in sessions:
            answer = await self.ask(session, **fields)
            assert answer.status_code == 200, answer.text
            found.append(answer.headers.get("x-sessile-variant", "m"))
            pool = "green" if found[-1] == "m@green" else "blue"
            assert answer.headers["x-sessile-replica"].startswith(pool)
        return found

    async def sides(self):
        """The figures of the release, by variant."""
        for router in self.routers:
            await router.app.releases.once()
        (release,) = (await self.http.get(RELEASES)).json()["releases"]
        return {side["variant"]: side for side in release["variants"]}

    async def receipt(self, answer):
        """The turn's."""
        turn = answer.headers["x-sessile-turn"]
        return (await self.http.get(f"/sessile/v1/turns/{turn}/receipt")).json()


def in_force(router, told):
    """Whether the router has heard, and its time has come."""
    release = router.app.pool.releases.get(told["model"])
    if release is None or release.state != told["state"]:
        return False
    return [v["percent"] for v in told["variants"]] == [v.weight for v in release.variants] and (
        release.at(time.time()) is release.variants
    )


@pytest.fixture
async def make(start, serve):
    """Makes sites: so many replicas of m in each pool, so many routers."""
    async with AsyncExitStack() as stack:

        async def make(blue=1, green=1, routers=1, kind="sglang", other="m", **settings):
            fakes = {
                "blue": [FakeReplica(model="m") for _ in range(blue)],
                "green": [FakeReplica(model=other) for _ in range(green)],
            }
            pools = [
                {
                    "name": name, "engine": kind, "standby": name == "green",
                    "urls": [(await serve(fake))[1] for fake in of],
                }
                for name, of in fakes.items() if of
            ]  # fmt: skip
            made, clients = [], []
            for _ in range(routers):
                router = await start(0, pool=pools, **settings)
                made.append(router)
                await router.until(lambda r=router: all(x.state == "ready" for x in r.app.pool))
                http = httpx2.AsyncClient(base_url=router.url, timeout=30, trust_env=False)
                clients.append(await stack.enter_async_context(http))
            return Site(made, fakes, clients)

        yield make


NAMES = [f"s{n}" for n in range(40)]


async def test_a_pool_on_standby_serves_nobody_before_a_swap(make):
    """Though it serves the same model."""
    site = await make()
    assert set(await site.of(*NAMES[:10])) == {"m"}
    assert site.fakes["green"][0].seen == []


async def test_new_sessions_go_to_the_new_and_running_ones_stay(make):
    """Until they end; the receipt says the variant."""
    site = await make()
    await site.of("running")
    await site.swap()
    assert await site.of("running", "new", "running", "new") == ["m", "m@green"] * 2
    receipt = await site.receipt(await site.ask("new"))
    assert (receipt["model"], receipt["variant"], receipt["left"]) == ("m", "m@green", None)
    assert [seen.body["model"] for seen in site.fakes["green"][0].seen] == ["m"] * 3


async def test_a_canary_gets_its_share_and_keeps_it(make):
    """30 % of the new sessions, each for all its turns; at 60 % those that were in it are still."""
    site = await make()
    await site.swap(percent=30)
    first = await site.of(*NAMES)
    assert 4 <= first.count("m@green") <= 20
    assert await site.of(*NAMES) == first
    await site.command("/m/share", {"percent": 60})
    assert await site.of(*NAMES) == first
    later = await site.of(*[f"t{n}" for n in range(40)])
    assert 14 <= later.count("m@green") <= 34


async def test_at_the_deadline_a_session_moves_whole(make):
    """Its next turn goes to the new one, and says so; the turn after stays."""
    site = await make()
    await site.of("s")
    await site.swap(deadline_s=0)
    moved = await site.ask("s")
    assert (moved.headers["x-sessile-reason"], moved.headers["x-sessile-variant"]) == (
        "swapped", "m@green",
    )  # fmt: skip
    assert (await site.receipt(moved))["left"] == "m"
    stays = await site.ask("s")
    assert stays.headers["x-sessile-reason"] == "bound"
    assert (await site.receipt(stays))["left"] is None


async def test_finish_ends_the_swap_and_the_name_means_the_new(make):
    """Another swap may begin; who runs at the old one stays without a deadline."""
    site = await make()
    await site.of("old")
    await site.swap(percent=10)
    done = await site.command("/m/finish", {})
    assert done["state"] == "finished"
    assert set(await site.of(*NAMES)) == {"m@green"}
    assert await site.of("old") == ["m"]
    back = await site.swap(to="m")
    assert (back["source"], back["target"]) == ("m@green", "m")
    assert await site.of("newer", "old") == ["m", "m"]


@pytest.mark.parametrize(("deadline_s", "variant"), [(0, "m"), (600, "m@green")])
async def test_a_roll_back_takes_all_back_at_once_or_by_a_deadline(make, deadline_s, variant):
    """New sessions go to the old one in either case."""
    site = await make()
    await site.swap()
    assert await site.of("canary") == ["m@green"]
    await site.command("/m/roll-back", {"deadline_s": deadline_s})
    assert await site.of("new", "canary", "canary") == ["m", variant, variant]


async def test_a_child_goes_where_its_parent_is(make):
    """By the header, forked by the API, or opened before its first turn."""
    site = await make()
    await site.of("parent")
    await site.swap()
    child = {"x-parent-session-id": "parent"}
    assert await site.of(*NAMES[:5], headers=child) == ["m"] * 5
    forked = (await site.http.post("/sessile/v1/sessions/parent/fork", json={"n": 3})).json()
    assert await site.of(*(each["session"] for each in forked["sessions"])) == ["m"] * 3
    for body, variant in (({"parent": "parent"}, "m"), ({}, "m@green")):
        opened = await site.http.post("/sessile/v1/sessions", json={"model": "m", **body})
        assert await site.of(opened.json()["session"]) == [variant]
    stray = await site.of("a", "b", "c", headers={"x-parent-session-id": "unheard-of"})
    assert len(set(stray)) == 1


async def test_a_response_that_follows_another_stays_with_it(make):
    """`previous_response_id` names the session; a branch of it is a child."""
    site = await make()
    made = await site.http.post("/v1/responses", json={"model": "m", "input": "hi"})
    await site.swap()
    for _ in range(2):
        follow = {"input": "and?", "previous_response_id": made.json()["id"]}
        answer = await site.http.post("/v1/responses", json=follow)
        assert (answer.status_code, answer.headers["x-sessile-variant"]) == (200, "m")
        assert answer.json()["model"] == "m"
    new = await site.http.post("/v1/responses", json={"model": "m", "input": "hi"})
    assert new.headers["x-sessile-variant"] == "m@green"
    follow = {"input": "and?", "previous_response_id": new.json()["id"]}
    answer = await site.http.post("/v1/responses", json=follow)
    assert answer.headers["x-sessile-variant"] == "m@green"


async def test_a_session_does_not_move_under_a_turn_that_runs(make):
    """A follow-up that is to go elsewhere waits for it, as it would where it was."""
    site = await make()
    made = await site.http.post("/v1/responses", json={"model": "m", "input": "hi"})
    blue, green = site.fakes["blue"][0], site.fakes["green"][0]
    blue.fail(Fault(pause_s=3.0))
    follow = {"model": "m", "previous_response_id": made.json()["id"], "input": "and?"}
    first = asyncio.create_task(site.http.post("/v1/responses", json=follow))
    await blue.until(lambda fake: fake.running)
    await site.swap(deadline_s=0)
    second = asyncio.create_task(site.http.post("/v1/responses", json=follow))
    done, _ = await asyncio.wait((first, second), return_when=asyncio.FIRST_COMPLETED)
    assert (done, green.seen) == ({first}, [])
    assert (await second).headers["x-sessile-reason"] == "swapped"
    assert len(green.seen) == 1


async def test_a_conversation_without_a_name_is_recognised_and_stays(make):
    """Begun before the swap or after it, it is known by its messages."""
    site = await make()
    begun = []
    for variant in ("m", "m@green"):
        if variant != "m":
            await site.swap()
        messages = [{"role": "user", "content": f"hello {variant}"}]
        first = await site.ask(messages=messages)
        said = first.json()["choices"][0]["message"]
        begun.append((first, [*messages, {"role": "assistant", "content": said["content"]}, USER]))
    for (first, messages), variant in zip(begun, ("m", "m@green"), strict=True):
        second = await site.ask(messages=messages)
        assert second.headers["x-sessile-session"] == first.headers["x-sessile-session"]
        assert second.headers["x-sessile-variant"] == variant


async def test_a_failover_stays_within_the_variant(make):
    """A session of the new one goes on at its other replica, never at an old one."""
    site = await make(green=2)
    await site.swap()
    answer = await site.ask("s")
    lost = answer.headers["x-sessile-replica"]
    site.routers[0].app.pool.drain(lost)
    after = await site.ask("s")
    assert after.headers["x-sessile-variant"] == "m@green"
    assert after.headers["x-sessile-replica"] not in (lost, "blue-0")


async def test_with_no_replica_of_its_variant_left_a_session_is_told(make):
    """It is not mixed; new ones go to the other, and a roll back moves it."""
    site = await make()
    await site.swap(percent=99)
    sessions = [s for s in NAMES if (await site.of(s)) == ["m@green"]]
    pool = site.routers[0].app.pool
    pool.drain("green-0")
    assert pool.missed("m") == 0
    lost = await site.ask(sessions[0])
    assert pool.missed("m") == 1  # whoever starts replicas on demand is to know
    assert (lost.status_code, lost.json()["error"]["code"]) == (503, "no_replica")
    assert "--roll-back" in lost.json()["error"]["message"]
    assert set(await site.of(*[f"new{n}" for n in range(5)])) == {"m"}
    sides = await site.sides()
    assert (sides["m@green"]["errors"], sides["m"]["errors"]) == (1, 0)
    await site.command("/m/roll-back", {})
    assert await site.of(sessions[0]) == ["m"]


@pytest.mark.parametrize("deadline_s", [None, 60, 0])
async def test_the_old_one_stands_in_for_a_new_one_that_is_gone(make, deadline_s):
    """A swap of all new sessions at once, whose new replicas die: new sessions begin where the
    others run, and stay there while those do; once the swap is finished they fail."""
    site = await make()
    await site.swap(**({} if deadline_s is None else {"deadline_s": deadline_s}))
    assert await site.of("mine") == ["m@green"]
    pool = site.routers[0].app.pool
    pool.drain("green-0")
    assert (await site.ask("mine")).status_code == 503
    if deadline_s == 0:  # nobody may be there any more
        assert (await site.ask("new")).status_code == 503
        return
    assert await site.of("new") == ["m"]
    pool.resume("green-0")
    assert await site.of("mine", "new", "newer") == ["m@green", "m", "m@green"]
    await site.command("/m/finish", {})
    pool.drain("green-0")
    assert (await site.ask("newest")).status_code == 503


async def test_what_is_left_and_gone_keeps_nobody(make):
    """The old replicas may go before every session has ended: those move."""
    site = await make()
    await site.of("s")
    await site.swap()
    site.routers[0].app.pool.drain("blue-0")
    assert await site.of("s") == ["m@green"]


async def test_another_model_may_take_a_names_place(make):
    """The engine is asked for its own model; clients go on asking for the name, an alias of it too,
    and the name outlives what it was the name of."""
    site = await make(other="n", aliases={"agent": "m"})
    assert (await site.swap(to="n"))["target"] == "n@green"
    answer = await site.ask("s", model="agent")
    assert answer.headers["x-sessile-variant"] == "n@green"
    assert answer.headers["x-sessile-replica"] == "green-0"
    assert [seen.body["model"] for seen in site.fakes["green"][0].seen] == ["n"]
    await site.command("/m/finish", {"deadline_s": 0})
    await site.routers[0].app.pool.remove("blue-0")
    assert (await site.ask("t")).status_code == 200
    listed = (await site.http.get("/v1/models")).json()["data"]
    assert {"m": "n@green", "n": "n"}.items() <= {m["id"]: m["root"] for m in listed}.items()


async def test_an_alias_may_be_swapped_alone(make):
    """Who asks for the model itself goes on with it."""
    site = await make(other="n", aliases={"agent": "m"})
    await site.swap(model="agent", to="n")
    assert (await site.ask("s", model="agent")).headers["x-sessile-variant"] == "n@green"
    assert "x-sessile-variant" not in (await site.ask("s", model="m")).headers
    refused = await site.http.post(RELEASES, json={"model": "m", "to": "n"})
    assert (refused.status_code, "is a variant of 'agent'" in refused.text) == (400, True)


async def test_an_engine_version_may_be_the_target(make, serve):
    """Those that run it are the new side, whichever pool they belong to."""
    site = await make(green=0)
    new = FakeReplica(model="m")
    new.version = "2.0"
    body = {"url": (await serve(new))[1], "engine": "sglang", "id": "green-9"}
    await site.http.post("/sessile/v1/replicas", json=body)
    pool = site.routers[0].app.pool
    await site.routers[0].until(lambda: len(pool.candidates("m")) == 2)
    await site.swap(to="sglang-2.0")
    answer = await site.ask("s")
    assert answer.headers["x-sessile-variant"] == "m@sglang-2.0"
    assert answer.headers["x-sessile-replica"] == "green-9"


async def test_figures_stand_side_by_side(make):
    """Of each variant: sessions, turns, errors, times, tokens and hits."""
    site = await make()
    await site.swap(percent=50)
    variants = await site.of(*NAMES[:10])
    again = await site.of(*NAMES[:10], stream=True)
    assert again == variants
    sides = await site.sides()
    for name in ("m", "m@green"):
        count = variants.count(name)
        side = sides[name]
        assert (side["sessions"], side["turns"], side["errors"]) == (count, 2 * count, 0)
        assert (side["percent"], side["ready"]) == (50, 1)
        assert side["ttft_p50_s"] <= side["ttft_p90_s"]
        assert 0 < side["hit_rate"] < 1
        assert side["completion_tokens"] > 0
    metrics = (await site.http.get("/metrics")).text
    count = float(variants.count("m@green"))
    assert f'sessile_variant_sessions_total{{model="m",variant="m@green"}} {count}' in metrics
    assert 'sessile_variant_weight{model="m",variant="m"} 50.0' in metrics
    assert 'sessile_variant_ttft_seconds_count{variant="m"}' in metrics


async def test_a_second_router_agrees(make, redis_server):
    """Turns that alternate between two, before, while and after the canary grows and is rolled
    back, see one variant a conversation; what one has counted the other adds."""
    store = {"url": redis_server.url, "timeout_s": 2.0}
    site = await make(routers=2, store=store)
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


async def test_turns_go_on_while_a_swap_begins(make, redis_server):
    """Sessions that begin at either router, in the moment when it comes into force too, never see
    two variants, though it is begun in the middle of their turns."""
    site = await make(routers=2, store={"url": redis_server.url, "timeout_s": 2.0})
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


async def test_without_the_store_the_last_word_holds(make, redis_server):
    """Turns go on, each session where it was; a change is refused, and says why."""
    site = await make(store={"url": redis_server.url, "timeout_s": 0.5, "retry_after_s": 0.1})
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


async def test_a_router_that_comes_later_knows_the_release(make, start, redis_server):
    """Before it serves its first turn; and a store that has lost it is told it again."""
    site = await make(store={"url": redis_server.url, "timeout_s": 2.0})
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


@pytest.mark.parametrize(
    ("path", "body", "status", "words"),
    [
        ("", {"model": "x", "to": "green"}, 404, "'x' is not served here"),
        ("", {"model": "m", "to": "x"}, 400, "no model, pool or engine version here"),
        ("", {"model": "m", "to": "m@x"}, 400, "no replica of 'x' serves 'm'"),
        ("", {"model": "m", "to": "m"}, 400, "served by 'm' already"),
        ("", {"model": "m", "to": "blue"}, 400, "there is nothing to swap"),
        ("", {"model": "m", "to": "green", "percent": 101}, 400, "percent"),
        ("", {"model": "m", "to": "green", "percent": -1}, 400, "percent"),
        ("", {"model": "m", "to": "green", "deadline_s": -1}, 400, "deadline_s"),
        ("", {"model": "m", "to": "green", "weights": 1}, 400, "weights"),
        ("/m/share", {"percent": 50}, 400, "begin one with --to"),
        ("/m/finish", {}, 400, "begin one with --to"),
        ("/m/roll-back", {}, 400, "to roll back"),
    ],
)
async def test_a_command_that_cannot_be_is_refused(make, path, body, status, words):
    """In one sentence that names what is wrong; nothing has changed."""
    site = await make()
    refused = await site.http.post(RELEASES + path, json=body)
    assert (refused.status_code, words in refused.json()["error"]["message"]) == (status, True)
    assert (await site.http.get(RELEASES)).json() == {"releases": []}


async def test_what_nothing_serves_is_no_target(make):
    """Nor is there a second swap while one is under way, nor a way back to what is gone."""
    site = await make(green=2)
    pool = site.routers[0].app.pool
    for name in ("green-0", "green-1"):
        pool.drain(name)
    refused = await site.http.post(RELEASES, json={"model": "m", "to": "green"})
    assert (refused.status_code, "so that nothing would serve" in refused.text) == (503, True)
    pool.resume("green-0")
    await site.swap(percent=10)
    second = await site.http.post(RELEASES, json={"model": "m", "to": "green"})
    assert (second.status_code, "finish it or roll it back" in second.text) == (400, True)
    pool.drain("blue-0")
    refused = await site.http.post(RELEASES + "/m/roll-back", json={})
    assert (refused.status_code, "so that nothing would serve" in refused.text) == (503, True)


async def test_the_settings_may_split_a_model(make):
    """As an A/B test begins, say; what is commanded later holds, whatever they say."""
    split = [{"model": "m", "to": "green", "percent": 50}]
    site = await make(release=split)
    known = site.routers[0].app.pool.releases
    await site.routers[0].until(lambda: "m" in known)
    told = (await site.http.get(RELEASES)).json()["releases"][0]
    await site.routers[0].until(lambda: in_force(site.routers[0], told))
    first = await site.of(*NAMES)
    assert set(first) == {"m", "m@green"}
    assert await site.of(*NAMES) == first
    await site.command("/m/roll-back", {})
    await asyncio.sleep(0.6)  # the settings are looked at twice a second
    assert known.get("m").state == "rolled_back"


async def test_a_closed_session_stays_closed(make):
    """A swap does not open it again."""
    site = await make()
    await site.of("s")
    await site.http.post("/sessile/v1/sessions/s/close")
    await site.swap(deadline_s=0)
    answer = await site.ask("s")
    assert (answer.status_code, answer.json()["error"]["code"]) == (410, "session_expired")


async def test_adapters_follow_their_base_once_a_swap_is_finished(make):
    """Until then they run where they ran."""
    site = await make()
    adapter = {"name": "sql", "base": "m", "path": "/adapters/sql"}
    await site.http.post("/sessile/v1/adapters", json=adapter)

    async def replica():
        return (await site.ask("s", model="sql")).headers["x-sessile-replica"]

    assert await replica() == "blue-0"
    await site.swap(percent=100)
    assert await replica() == "blue-0"
    await site.command("/m/finish", {})
    assert await replica() == "green-0"


async def test_a_variant_that_is_forgotten_keeps_only_what_is_closed():
    """A session that was idle for longer than two swaps took moves on; a closed one stays so."""
    store = MemoryStore(StoreLimits())
    app = create_app(Settings(), store=store)
    release = begin(
        None, "m", Variant(name="p", model="p"), Variant(name="n", model="n"), id="1",
        percent=100, deadline_s=None, now=0,
    )  # fmt: skip
    app.pool.releases.put(release)
    gone = SessionKey("default", "m@gone", "closed")
    await store.create_session(SessionRecord(tenant="default", session="closed", model="m@gone"))
    for session in ("idle", gone.session):
        key = SessionKey("default", "m", session)
        await store.assign(key, ("m@gone",), ("m@gone",), "m@gone")
    await store.close_session(gone)
    assert await app.flow.key_of("default", "m", "idle") == "n"
    with pytest.raises(SessionExpired):
        await app.flow.key_of("default", "m", "closed")
