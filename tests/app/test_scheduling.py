"""Scheduling through the router: pauses, leases, hints, and the queue before full replicas."""

import asyncio
from typing import Any

import pytest

from sessile.lab.fake_replica import FakeReplica, Fault

CHAT = "/v1/chat/completions"


def ask(text: str = "hi", **fields: Any) -> dict[str, Any]:
    """A chat request of one message."""
    return {"model": "m", "messages": [{"role": "user", "content": text}], **fields}


async def turn(router, http, session="s", text="hi", headers=(), **fields):
    """One turn of that session."""
    return await http.post(
        router.url + CHAT,
        json=ask(text, **fields),
        headers={"x-session-id": session, **dict(headers)},
    )


def outlook(router, name="one"):
    """What the router expects of a replica."""
    return router.app.pool.get(name).outlook


async def fill(router, http):
    """A replica of little memory, and a turn that holds it until the event is set."""
    outlook(router).resize(1000)
    hold = asyncio.Event()
    router.engine.plays(hold, "done")
    running = asyncio.create_task(turn(router, http, "first"))
    await router.until(lambda: router.engine.running == 1)
    return hold, running


LONG = "x" * 12_000
"""Does not fit beside another in such a memory."""


async def test_a_turn_that_calls_a_tool_pauses_for_it(router, http):
    """The pause is of the tool's name, streamed or not known at all."""
    router.engine.calls("grep", "{}")
    await turn(router, http, stream=True)
    await router.until(lambda: bool(outlook(router).paused))
    (pause,) = router.app.flow.scheduler.live.pauses._pauses.values()
    assert pause.kind == "grep"


async def test_a_pausing_session_is_leased(router, http):
    """Held as long as it pauses; nothing to hold while nothing pauses, and no such session."""
    url = f"{router.url}/sessile/v1/sessions/%s/lease"
    assert (await http.post(url % "s", json={"seconds": 60})).status_code == 404
    await turn(router, http)
    told = await http.post(url % "s", json={"seconds": 60})
    assert told.json() == {"session": "s", "seconds": 60.0, "held": True}
    hold = asyncio.Event()
    router.engine.plays(hold, "done")
    running = asyncio.create_task(turn(router, http))
    await router.until(lambda: router.engine.running == 1)
    told = await http.post(url % "s", json={"seconds": 60})
    assert told.status_code == 200 and told.json()["held"] is False
    hold.set()
    await running


@pytest.mark.parametrize("body", [{"seconds": -1}, {"seconds": "soon"}, {}, {"hours": 1}])
async def test_a_lease_of_no_such_time_is_refused(router, http, body):
    """In the protocol's shape, with a sentence."""
    await turn(router, http)
    reply = await http.post(f"{router.url}/sessile/v1/sessions/s/lease", json=body)
    assert reply.status_code in (400, 422)
    assert reply.json()["error"]["message"]


async def test_a_pause_ends_though_nobody_waits(router, http):
    """A session whose time has passed burdens its replica no longer, queue or not."""
    await turn(router, http)
    await http.post(f"{router.url}/sessile/v1/sessions/s/lease", json={"seconds": 0.01})
    await asyncio.sleep(0.02)
    await turn(router, http, "other")
    assert len(outlook(router).paused) == 1


async def test_the_policy_shows_what_was_learned(router, http):
    """Reasons, and each replica's rates and memory."""
    await turn(router, http)
    told = (await http.get(f"{router.url}/sessile/v1/policy")).json()
    assert (told["policy"], told["queued"]) == ("session", 0)
    assert told["reasons"] == {"new": 1}
    (replica,) = told["replicas"]
    assert replica["id"] == "one" and replica["paused"] == 1
    assert replica["prefill_tokens_per_s"] > 0 and replica["tpot_s"] > 0


@pytest.mark.parametrize("value", ["urgent", "-1", "10", "1.5", ""])
async def test_a_priority_that_is_none_is_refused_by_name(router, http, value):
    """A client learns which header was wrong, and the engine is not asked."""
    reply = await turn(router, http, headers={"x-priority": value})
    assert reply.status_code == 400
    error = reply.json()["error"]
    assert error["param"] == "x-priority" and "X-Priority" in error["message"]
    assert not router.engine.asked


async def test_a_turn_waits_for_memory_and_its_receipt_says_how_long(router, http):
    """It is sent when the one before it has gone."""
    hold, running = await fill(router, http)
    waiting = asyncio.create_task(turn(router, http, "second", LONG))
    queue = router.app.flow.scheduler.queue
    await router.until(lambda: len(queue) == 1)
    assert len(router.engine.asked) == 1
    assert "sessile_queued_turns 1.0" in (await http.get(router.url + "/metrics")).text
    (place,) = (await http.get(f"{router.url}/sessile/v1/policy")).json()["queue"]
    assert (place["place"], place["session"]) == (1, "second") and place["waited_s"] >= 0
    await asyncio.sleep(0.02)
    hold.set()
    await running
    await http.post(f"{router.url}/sessile/v1/sessions/first/close")
    reply = await waiting
    assert reply.status_code == 200 and not queue
    id = reply.headers["x-sessile-turn"]
    receipt = (await http.get(f"{router.url}/sessile/v1/turns/{id}/receipt")).json()
    assert receipt["queue_s"] >= 0.02
    page = (await http.get(router.url + "/metrics")).text
    assert 'sessile_queue_seconds_count{replica="one"} 1.0' in page
    assert "sessile_queued_turns 0.0" in page


async def test_what_was_foreseen_is_measured_against_what_came(router, http):
    """From the second streamed turn on: before it, nothing is known to foresee."""
    await turn(router, http, stream=True)
    await turn(router, http, "other", stream=True)
    page = (await http.get(router.url + "/metrics")).text
    assert 'sessile_ttft_error_ratio_count{replica="one"} 1.0' in page


async def test_a_queued_turn_whose_client_hangs_up_leaves_the_queue(router, http):
    """Nothing is sent for it, and nothing is kept."""
    hold, running = await fill(router, http)
    waiting = asyncio.create_task(turn(router, http, "second", LONG))
    queue = router.app.flow.scheduler.queue
    await router.until(lambda: len(queue) == 1)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    await router.until(lambda: not queue)
    hold.set()
    await running
    assert len(router.engine.asked) == 1


async def test_a_full_queue_is_told_to_come_back(start, http):
    """429 in the protocol's shape, with `Retry-After`."""
    router = await start(router={"most_queued": 0})
    hold, running = await fill(router, http)
    reply = await turn(router, http, "second", LONG)
    assert reply.status_code == 429
    assert int(reply.headers["retry-after"]) >= 1
    assert "KV memory" in reply.json()["error"]["message"]
    hold.set()
    await running


@pytest.mark.parametrize(
    "path, headers, reason",
    [
        ("chat/completions", {"x-session-id": "two"}, "new"),
        ("chat/completions", {"x-session-id": "two", "x-dynamo-session-final": "true"}, "prefix"),
        ("completions", {"x-session-id": "two"}, "new"),
        ("completions", {}, "prefix"),
    ],
)
async def test_who_will_not_be_back_goes_where_its_prompt_is(start, http, path, headers, reason):
    """By its client's word, or because nothing could tell a later turn of its session. Others are
    foreseen to come back, beside whoever is there already."""
    router = await start(engines=[FakeReplica(model="m"), FakeReplica(model="m")])
    text = "x" * 5_000
    said = {"prompt": text} if path == "completions" else ask(text)
    body = {**said, "model": "m", "max_tokens": 9}

    async def begin(headers):
        return await http.post(f"{router.url}/v1/{path}", json=body, headers=headers)

    assert (await begin({"x-session-id": "one"})).headers["x-sessile-reason"] == "new"
    assert (await begin(headers)).headers["x-sessile-reason"] == reason


@pytest.mark.parametrize("path", ["chat/completions", "responses", "messages"])
@pytest.mark.parametrize("stream", [False, True])
async def test_a_prefix_whose_turn_was_refused_draws_nobody(start, http, path, stream):
    """The replica that refused it has not stored it: to the next session that begins so, all are
    the same; the one that serves that draws the one after."""
    fakes = [FakeReplica(model="m"), FakeReplica(model="m")]
    router = await start(engines=fakes)
    said = {"input": LONG} if path == "responses" else ask(LONG)
    body = {**said, "model": "m", "max_tokens": 9, "stream": stream}
    if path == "responses":
        del body["max_tokens"]

    async def begin(session):
        headers = {"x-session-id": session}
        return await http.post(f"{router.url}/v1/{path}", json=body, headers=headers)

    for fake in fakes:
        fake.always = Fault(status=400)
    assert (await begin("refused")).status_code == 400
    for fake in fakes:
        fake.always = Fault()
    reasons = [(await begin(name)).headers["x-sessile-reason"] for name in ("next", "third")]
    assert reasons == ["new", "prefix"]
