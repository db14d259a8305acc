"""Swaps while sessions run: no conversation, with all that belongs to it, sees two variants."""

import asyncio

import pytest

from sessile.app import create_app
from sessile.errors import SessionExpired
from sessile.lab.fake_replica import Fault
from sessile.router.releases import Variant, begin
from sessile.sessions.memory_store import MemoryStore
from sessile.sessions.record import SessionKey, SessionRecord
from sessile.sessions.store import StoreLimits
from sessile.settings import Settings
from swap_site import NAMES, USER


async def test_a_child_goes_where_its_parent_is(make_site):
    """By the header, forked by the API, or opened before its first turn."""
    site = await make_site()
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


async def test_a_response_that_follows_another_stays_with_it(make_site):
    """`previous_response_id` names the session; a branch of it is a child."""
    site = await make_site()
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


async def test_a_session_does_not_move_under_a_turn_that_runs(make_site):
    """A follow-up that is to go elsewhere waits for it, as it would where it was."""
    site = await make_site()
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


async def test_a_conversation_without_a_name_is_recognised_and_stays(make_site):
    """Begun before the swap or after it, it is known by its messages."""
    site = await make_site()
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


async def test_a_closed_session_stays_closed(make_site):
    """A swap does not open it again."""
    site = await make_site()
    await site.of("s")
    await site.http.post("/sessile/v1/sessions/s/close")
    await site.swap(deadline_s=0)
    answer = await site.ask("s")
    assert (answer.status_code, answer.json()["error"]["code"]) == (410, "session_expired")


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
