"""Turns that the SDK leaves running: in the background, and found again by another client."""

import asyncio
from typing import Any

import httpx2
import pytest

from scripted_engine import STOP
from sdk_turns import first_delta, rest, said
from sessile import AsyncClient, errors


async def test_a_turn_in_the_background(router: Any, sdk: AsyncClient) -> None:
    """It is accepted at once, heard from its first event, and the next turn waits for it."""
    gate = asyncio.Event()
    router.engine.plays("Hel", gate, "lo", STOP)
    session = sdk.session()
    run = await session.background("Talk.")
    assert session.running is run and not run.finished
    await router.until(lambda: router.engine.running == 1)
    next_turn = asyncio.create_task(session.send("On."))
    await asyncio.sleep(0.05)
    assert not next_turn.done()
    gate.set()
    await next_turn
    assert said(router) == ["Talk.", "Hello", "On."]
    text, reply = await rest(run.events())
    assert reply.text == "Hello" and session.running is None


async def test_a_turn_in_the_background_calls_tools(router: Any, sdk: AsyncClient) -> None:
    """While somebody listens; what was heard is not told again."""

    def look() -> str:
        return "seen"

    router.engine.calls("look", "{}")
    router.engine.says("Done.")
    run = await sdk.session(tools=[look]).background("Look.")
    async for _ in run.events():
        break
    reply = await run.wait()
    assert (reply.text, [call.name for call in reply.tool_calls]) == ("Done.", ["look"])
    assert len(router.engine.asked) == 2


async def test_a_turn_in_the_background_is_cancelled(router: Any, sdk: AsyncClient) -> None:
    """The engine stops, the reply says so, and the session is as before."""
    session = sdk.session()
    await session.send("One.")
    router.engine.plays("Hel", asyncio.Event())
    run = await session.background("Two.")
    await router.until(lambda: router.engine.running == 1)
    await first_delta(run.events())
    await run.cancel()
    reply = await run.wait()
    assert (reply.text, reply.incomplete) == ("Hel", "cancelled")
    assert router.engine.aborted == 1
    await run.cancel()
    await session.send("Three.")
    assert "Two." not in said(router)


async def test_another_client_goes_on_with_a_running_turn(router: Any) -> None:
    """Also with a session's first, which its router knows of by nothing else; it is heard from its
    first event, and the next turn waits for it."""
    gate = asyncio.Event()
    router.engine.plays("Hel", gate, "lo", STOP)
    gone = AsyncClient(router.url)
    talking = gone.session("s-1", system="Be brief.")
    await first_delta(talking.stream("Talk."))
    await gone._http.aclose()  # as a process that is killed: nothing is cancelled
    for socket in list(gone._connected):
        await socket.abandon()
    async with AsyncClient(router.url) as client:
        session = await client.attach("s-1")
        run = session.running
        assert run is not None
        gate.set()
        text, reply = await rest(run.events())
        assert text == reply.text == "Hello"
        await session.send("On.")
        assert said(router) == ["Be brief.", "Talk.", "Hello", "On."]
        assert (await client.attach("s-1")).running is None
        with pytest.raises(errors.SessionNotFound):
            await client.attach("s-2")
    assert len(router.engine.asked) == 2


async def test_another_client_runs_the_tools_that_nobody_ran(router: Any) -> None:
    """The process that was to run them is gone; what they give goes to the model as ever."""

    def look() -> str:
        return "seen"

    router.engine.calls("look", "{}")
    router.engine.says("Done.")
    async with httpx2.AsyncClient(trust_env=False) as http:
        tool = {"type": "function", "name": "look", "parameters": {"type": "object"}}
        body = {"model": "m", "input": "Look.", "tools": [tool], "stream": True}
        headers = {"X-Session-ID": "s-1"}
        await http.post(f"{router.url}/v1/responses", json=body, headers=headers)
    async with AsyncClient(router.url) as client:
        session = await client.attach("s-1", tools=[look])
        assert session.running is not None
        assert (await session.running.wait()).text == "Done."
    assert said(router)[-1] == "seen"


async def test_nobody_finds_or_stops_what_is_not_theirs(start: Any) -> None:
    """Another tenant's session runs nothing, and its turn is not there."""
    router = await start(auth={"api_keys": "a=one,b=two"})
    router.engine.plays("Hel", asyncio.Event())
    async with AsyncClient(router.url, "one") as mine, AsyncClient(router.url, "two") as other:
        session = mine.session("s-1")
        run = await session.background("Talk.")
        await router.until(lambda: router.engine.running == 1)
        with pytest.raises(errors.SessionNotFound):
            await other.attach("s-1")
        url = f"{router.url}/sessile/v1/turns/{run.id}/cancel"
        async with httpx2.AsyncClient(trust_env=False) as http:
            answer = await http.post(url, headers={"Authorization": "Bearer two"})
        assert answer.status_code == 404 and router.engine.running == 1
        assert (await mine.attach("s-1")).running is not None
        await session.close()
    await router.until(lambda: router.engine.running == 0)
