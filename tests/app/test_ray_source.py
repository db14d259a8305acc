"""Replicas of a Ray Serve application, found by its roll: they come, drain before they go, and what
this router has under way is told. The roll is the real one, served without Ray."""

import asyncio
import time

import msgspec
import pytest

from sessile.ray.roll import Beat, Report, Roll


class ServedRoll:
    """A roll over HTTP; the replicas of `up` and `leaving` live, as far as it is told."""

    def __init__(self):
        self.roll = Roll("m", 5.0, time.monotonic() - 60)
        self.up, self.leaving = {}, {}
        self.reports = []

    def run(self, name, url):
        self.up[name] = Beat(name, "openai", url, "m")

    def leave(self, name):
        self.leaving[name] = self.up.pop(name)

    def end(self, name):
        del self.leaving[name]
        self.roll.gone(name)

    def is_drained(self, name):
        return self.roll.is_drained(name, time.monotonic())

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http":
            return
        now = time.monotonic()
        for beat in self.up.values():
            self.roll.beat(beat, now)
        for beat in self.leaving.values():
            self.roll.leave(beat, now)
        body = b""
        while (message := await receive())["type"] == "http.request":
            body += message["body"]
            if not message["more_body"]:
                break
        report = msgspec.json.decode(body, type=Report)
        self.reports.append(report)
        answer = msgspec.json.encode(self.roll.report(report, now))
        status = 200 if scope["path"] == "/llm" else 404
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": answer})


@pytest.fixture
async def found(start, serve):
    """A router, and the roll by which it finds its replicas."""
    roll, url = await serve(ServedRoll())
    source = f"openai=ray://{url.partition('://')[2]}/llm"
    return await start(0, discover=(source,)), roll


async def test_a_replica_may_go_once_the_router_has_nothing_there(found, serve, http):
    """A turn that runs there ends there, and until then the roll holds the replica; when it has
    ended it is gone from the pool."""
    router, roll = found
    (one, first), (_, second) = await serve(), await serve()
    roll.run("one", first)
    await router.until_pool(one="ready")
    held = asyncio.Event()
    one.plays("slow", held)
    running = asyncio.create_task(router.turn(http, "s", stream=True))
    await router.until(lambda: one.running == 1)
    roll.run("two", second)
    roll.leave("one")
    await router.until_pool(one="draining", two="ready")
    await router.until(lambda: "one" in roll.reports[-1].holds)
    assert roll.reports[-1].holds["one"].in_flight == 1
    assert not roll.is_drained("one")
    held.set()
    assert (await running).headers["x-sessile-replica"] == "one"
    await router.until(lambda: roll.is_drained("one"))
    assert router.states == {"one": "draining", "two": "ready"}
    roll.end("one")
    await router.until_pool(two="ready")


async def test_turns_that_find_no_replica_are_told_of(found, serve, http):
    """They are answered 503 with a time to come back, and the roll hears how many they were."""
    router, roll = found
    await router.until(lambda: len(roll.reports) > 1)
    reply = await router.turn(http, "s")
    assert reply.status_code == 503
    assert reply.headers["retry-after"]
    await router.until(lambda: sum(report.missed for report in roll.reports) == 1)
    _, url = await serve()
    roll.run("one", url)
    await router.until_pool(one="ready")
    assert (await router.turn(http, "s")).status_code == 200


async def test_first_tokens_are_told_of(found, serve, http):
    """So that an application scales by how late they are."""
    router, roll = found
    _, url = await serve()
    roll.run("one", url)
    await router.until_pool(one="ready")
    assert (await router.turn(http, "s", stream=True)).status_code == 200
    await router.until(lambda: roll.reports[-1].turns == 1)
    assert roll.reports[-1].late == 0


async def test_a_roll_that_has_just_begun_takes_no_replica_away(found, serve):
    """It may not have heard of it yet."""
    router, roll = found
    _, url = await serve()
    roll.run("one", url)
    await router.until_pool(one="ready")
    roll.up.clear()
    roll.roll = Roll("m", 5.0, time.monotonic())
    told = len(roll.reports)
    await router.until(lambda: len(roll.reports) > told + 1)
    assert router.states == {"one": "ready"}


async def test_an_application_that_is_not_there_is_said_in_ready(start, serve, http):
    """With its name."""
    _, url = await serve(ServedRoll())
    router = await start(0, discover=(f"openai=ray://{url.partition('://')[2]}/other",))
    await router.until(lambda: "answered 404" in str(router.app.discovery.failing))
    told = (await http.get(f"{router.url}/ready")).json()
    assert any("is it deployed?" in why for why in told["discovery"].values())
