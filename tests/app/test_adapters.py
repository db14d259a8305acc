"""LoRA adapters through the router: declared, loaded when asked for, kept, and let go of."""

import asyncio
from contextlib import AsyncExitStack

import httpx2
import pytest

from sessile.app import create_app
from sessile.lab.fake_replica import FakeReplica, Fault
from sessile.router.adapters import Adapter
from sessile.sessions.memory_store import MemoryStore
from sessile.sessions.store import StoreLimits
from sessile.settings import Settings

CHAT, ADAPTERS = "/v1/chat/completions", "/sessile/v1/adapters"


class Site:
    """A router before fake replicas, and a client of it."""

    def __init__(self, router, fakes, http):
        self.router, self.fakes, self.http = router, fakes, http

    async def add(self, name, **fields):
        """Declare an adapter of m."""
        body = {"name": name, "base": "m", "path": f"/adapters/{name}", **fields}
        return await self.http.post(ADAPTERS, json=body)

    async def ask(self, model, session="s", text="hi", **fields):
        """One turn."""
        body = {"model": model, "messages": [{"role": "user", "content": text}], **fields}
        return await self.http.post(CHAT, json=body, headers={"x-session-id": session})

    @property
    def asked(self):
        """Every load and unload, at any replica."""
        return [call for fake in self.fakes for call in fake.adapters.asked]

    async def shown(self, name):
        """The adapter as the router lists it."""
        listed = (await self.http.get(ADAPTERS)).json()["adapters"]
        return next((adapter for adapter in listed if adapter["name"] == name), None)


@pytest.fixture
async def make(start):
    """Makes sites of so many replicas; `most` is what the engine says that it holds."""
    async with AsyncExitStack() as stack:

        async def make(replicas=1, most=None, prepare=lambda fake: None, **settings):
            fakes = [FakeReplica(model="m") for _ in range(replicas)]
            for fake in fakes:
                fake.adapters.most = most
                prepare(fake)
            router = await start(fakes, kind="sglang", **settings)
            http = httpx2.AsyncClient(base_url=router.url, timeout=30, trust_env=False)
            return Site(router, fakes, await stack.enter_async_context(http))

        yield make


async def test_an_adapter_is_a_model_of_its_own(make):
    """Declared, it is listed with its parent, loaded by the first turn that asks for it, and used
    by the engine; the base goes on without it."""
    site = await make()
    assert (await site.add("sql")).status_code == 201
    listed = (await site.http.get("/v1/models")).json()["data"]
    assert [(model["id"], model.get("parent")) for model in listed] == [("m", None), ("sql", "m")]
    assert (await site.http.get("/v1/models/sql")).json()["parent"] == "m"
    assert site.asked == []
    for _ in range(2):
        assert (await site.ask("sql")).status_code == 200
    assert (await site.ask("m")).status_code == 200
    assert site.asked == ["load sql"]
    assert [seen.body.get("lora_path") for seen in site.fakes[0].seen] == ["sql", "sql", None]
    assert await site.shown("sql") == {
        "name": "sql", "base": "m", "path": "/adapters/sql", "loaded": ["one"], "refused": {},
    }  # fmt: skip


async def test_the_settings_declare_too(make):
    """What they say cannot be taken away while the router runs."""
    site = await make(adapter=[{"name": "sql", "base": "m", "path": "/adapters/sql"}])
    assert (await site.ask("sql")).status_code == 200
    refused = await site.http.delete(f"{ADAPTERS}/sql")
    assert (refused.status_code, "in the settings" in refused.text) == (400, True)


async def test_turns_that_come_together_wait_for_one_load(make):
    """It is asked for once, and all are served."""
    site = await make()
    site.fakes[0].adapters.load_s = 0.2
    await site.add("sql")
    replies = await asyncio.gather(*(site.ask("sql", f"s{n}") for n in range(5)))
    assert [reply.status_code for reply in replies] == [200] * 5
    assert site.asked == ["load sql"]


async def test_a_client_that_leaves_does_not_end_the_load_of_others(make):
    """The one who asked first hangs up; who waits with him is served."""
    site = await make()
    site.fakes[0].adapters.load_s = 0.3
    await site.add("sql")
    first = asyncio.create_task(site.ask("sql", "first"))
    await site.router.until(lambda: site.asked == ["load sql"])
    second = asyncio.create_task(site.ask("sql", "second"))
    await asyncio.sleep(0.05)
    first.cancel()
    assert (await second).status_code == 200
    assert site.asked == ["load sql"]


async def test_sessions_go_where_their_adapter_is(make):
    """By a rule that prices no load, one load serves all of them."""
    site = await make(2, router={"policy": "sticky"})
    await site.add("sql")
    replicas = {(await site.ask("sql", f"s{n}")).headers["x-sessile-replica"] for n in range(6)}
    assert len(replicas) == 1
    assert site.asked == ["load sql"]


async def test_the_cache_of_the_base_does_not_count_for_the_adapter(make):
    """The same prompt, cached for the base, is foreseen as new for the adapter, and is."""
    site = await make()
    await site.add("sql")
    text = "long " * 2000
    for model, cached in (("m", False), ("m", True), ("sql", False), ("sql", True)):
        reply = await site.ask(model, f"{model} {cached}", text)
        turn = reply.headers["x-sessile-turn"]
        receipt = (await site.http.get(f"/sessile/v1/turns/{turn}/receipt")).json()
        assert (receipt["predicted_cached_tokens"] > 0) is cached
        assert (receipt["cached_tokens"] > 0) is cached


async def test_the_least_recently_used_makes_way(make):
    """As many stay loaded as the engine says; a second look of the first brings it back."""
    site = await make(most=2)
    for name in ("a", "b", "c"):
        await site.add(name)
    for name in ("a", "b", "a", "c", "b"):
        assert (await site.ask(name, name)).status_code == 200
    assert site.asked == ["load a", "load b", "unload b", "load c", "unload a", "load b"]
    assert set(site.fakes[0].adapters.loaded) == {"b", "c"}


async def test_an_adapter_with_a_running_turn_stays(make):
    """A turn of another waits until it is over."""
    site = await make(router={"max_adapters": 1})
    await site.add("a")
    await site.add("b")
    site.fakes[0].fail(Fault(pause_s=0.2))
    endless = {"model": "a", "stream": True, "messages": [{"role": "user", "content": "w " * 60}]}
    async with site.http.stream("POST", CHAT, json=endless) as running:
        lines = running.aiter_lines()
        await anext(lines)
        waiting = asyncio.create_task(site.ask("b", "other"))
        await asyncio.sleep(0.1)
        assert (site.asked, waiting.done()) == (["load a"], False)
    assert (await waiting).status_code == 200
    assert site.asked == ["load a", "unload a", "load b"]


async def test_an_adapter_that_does_not_fit_is_told_in_the_engines_words(make):
    """Each replica is asked once; no turn after it asks again, until it is declared anew."""
    words = "rank 64 is incompatible with the memory pool"
    site = await make(2, prepare=lambda fake: fake.adapters.unfit.update({"/adapters/big": words}))
    await site.add("big")
    for _ in range(3):
        reply = await site.ask("big")
        assert reply.status_code == 400
        assert reply.json()["error"]["code"] == "adapter_refused"
        assert words in reply.json()["error"]["message"]
    assert site.asked == ["load big"] * 2
    shown = await site.shown("big")
    assert {name: words in why for name, why in shown["refused"].items()} == {
        "one": True, "two": True,
    }  # fmt: skip
    await site.http.delete(f"{ADAPTERS}/big")
    await site.add("big", path="/adapters/small")
    assert (await site.ask("big")).status_code == 200


async def test_an_adapter_declared_anew_is_another(make):
    """What an engine has kept of the old one, since it would not let go, is not used for it."""
    site = await make()
    await site.add("sql")
    await site.ask("sql")
    await site.http.delete(f"{ADAPTERS}/sql")
    site.fakes[0].adapters.loaded["sql"] = "/adapters/sql"
    await site.add("sql", path="/adapters/sql2")
    assert (await site.ask("sql")).status_code == 200
    assert site.fakes[0].adapters.loaded == {"sql": "/adapters/sql2"}


async def test_one_that_fits_at_another_replica_is_served_there(make):
    """A refusal is a reason to go elsewhere."""
    site = await make(2)
    site.fakes[0].adapters.unfit["/adapters/sql"] = "no"
    await site.add("sql")
    for n in range(3):
        reply = await site.ask("sql", f"s{n}")
        assert (reply.status_code, reply.headers["x-sessile-replica"]) == (200, "two")


async def test_what_another_router_dropped_is_loaded_again(make):
    """The engine does not know the adapter any more, and this router does not know that yet."""
    site = await make()
    await site.add("sql")
    await site.ask("sql")
    site.fakes[0].adapters.loaded.clear()
    reply = await site.ask("sql")
    assert reply.status_code == 200
    assert site.asked == ["load sql", "load sql"]


async def test_what_another_router_loaded_is_used_as_it_is(make):
    """A load that is refused since it is there already is none; one from elsewhere is replaced."""
    site = await make()
    site.fakes[0].adapters.loaded.update({"sql": "/adapters/sql", "chat": "/adapters/old"})
    await site.add("sql")
    await site.add("chat")
    assert (await site.ask("sql")).status_code == 200
    assert (await site.ask("chat")).status_code == 200
    assert site.fakes[0].adapters.loaded == {"sql": "/adapters/sql", "chat": "/adapters/chat"}
    assert site.asked == ["load sql", "load chat", "unload chat", "load chat"]


async def test_an_engine_started_with_adapters_tells_of_them(make):
    """Nobody declares them, and they are served and listed."""
    site = await make(prepare=lambda fake: fake.adapters.loaded.update({"own": "/adapters/own"}))
    assert (await site.ask("own")).status_code == 200
    assert (await site.shown("own"))["loaded"] == ["one"]
    assert site.asked == []


async def test_a_deleted_adapter_is_unloaded_and_unknown(make):
    """Its name is a model no more."""
    site = await make()
    await site.add("sql")
    await site.ask("sql")
    assert (await site.http.delete(f"{ADAPTERS}/sql")).status_code == 200
    assert site.asked == ["load sql", "unload sql"]
    assert (await site.ask("sql")).status_code == 404
    assert (await site.http.delete(f"{ADAPTERS}/sql")).status_code == 404
    assert await site.shown("sql") is None


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ({"name": "m"}, 400, "is a model that is served here"),
        ({"name": "a:b"}, 400, "name"),
        ({"path": ""}, 400, "path"),
        ({"weights": "x"}, 400, "weights"),
        ({"name": "taken"}, 400, "delete it first"),
    ],
)
async def test_a_declaration_that_cannot_be_is_refused(make, body, status, words):
    """In one sentence that names what is wrong."""
    site = await make()
    await site.add("taken", path="/adapters/first")
    refused = await site.http.post(
        ADAPTERS, json={"name": "sql", "base": "m", "path": "/adapters/sql", **body}
    )
    assert (refused.status_code, words in refused.json()["error"]["message"]) == (status, True)


async def test_an_engine_that_loads_none_is_named(start):
    """llama.cpp and the like take adapters at their start."""
    router = await start()
    async with httpx2.AsyncClient(base_url=router.url, trust_env=False) as http:
        refused = await http.post(ADAPTERS, json={"name": "sql", "base": "m", "path": "/a"})
    assert refused.status_code == 501
    assert "openai loads no adapters while it runs" in refused.json()["error"]["message"]


def lists(n):
    """The adapter lists of so many routers that share a store."""
    store = MemoryStore(StoreLimits())
    return store, [create_app(Settings(), store=store).adapters for _ in range(n)]


def known(adapters):
    """What the router of that list knows."""
    return {adapter.name: adapter.path for adapter in adapters.pool.adapters}


async def test_routers_of_one_store_know_the_same_adapters():
    """Declared at one it is known at the others, those that join later too; the last word on a name
    counts, and is kept by a router whose store has lost it."""
    store, (one, two) = lists(2)
    await one.add(Adapter(name="sql", base="m", path="/a"))
    await two.once()
    assert known(two) == {"sql": "/a"}
    await two.remove("sql")
    await one.once()
    assert known(one) == {}
    await one.add(Adapter(name="sql", base="m", path="/b"))
    await two.once()
    assert known(two) == {"sql": "/b"}
    await store.put_adapter("sql", b"not a word")
    await one.once()
    assert known(one) == {"sql": "/b"}
    late = create_app(Settings(), store=store).adapters
    await late.once()
    assert known(late) == {"sql": "/b"}
