"""The SDK steers a turn: what is said while the model speaks, wherever the line is cut."""

import asyncio
from typing import Any

import httpx2
import pytest

from bad_line import Line
from scripted_engine import STOP
from sdk_turns import first_delta, rest, said
from sessile import AsyncClient, AsyncSession, Client, errors


async def test_a_turn_is_steered(router: Any, sdk: AsyncClient) -> None:
    """What was said stays, the steer follows it, and the reply is what the model then says."""
    gate = asyncio.Event()
    router.engine.plays("Hel", gate, "lo", asyncio.Event())
    router.engine.says("Stopped.")
    session = sdk.session()
    events = session.stream("Talk.")
    assert await first_delta(events) == "Hel"
    await session.steer("Stop.")
    gate.set()
    text, reply = await rest(events)
    assert (text, reply.text) == ("loStopped.", "Stopped.")
    assert said(router) == ["Talk.", "Hello", "Stop."]
    await session.send("Thanks.")
    assert said(router) == ["Talk.", "Hello", "Stop.", "Stopped.", "Thanks."]


async def test_a_steer_is_said_once_however_late_it_comes(router: Any, sdk: AsyncClient) -> None:
    """Before the answer has begun, and while it is ending: it is in the conversation, once."""
    gate = asyncio.Event()
    router.engine.plays(gate, "Hello.", STOP)
    session = sdk.session()
    sending = asyncio.create_task(session.send("Talk."))
    await router.until(lambda: router.engine.running == 1)
    await session.steer("Stop.")
    gate.set()
    await sending
    assert said(router) == ["Talk.", "Hello.", "Stop."]
    events = session.stream("On.")
    await first_delta(events)
    await session.steer("Now.")
    await rest(events)
    assert said(router).count("Now.") == 1 and said(router)[-1] == "Now."


async def test_a_steer_while_tools_run_goes_with_their_outputs(
    router: Any, sdk: AsyncClient
) -> None:
    """Behind them, in the same request."""
    session: AsyncSession

    async def look() -> str:
        await session.steer("Quick.")
        return "seen"

    router.engine.calls("look", "{}")
    session = sdk.session(tools=[look])
    await session.send("Look.")
    messages = router.engine.asked[-1]["messages"]
    assert [message["role"] for message in messages] == ["user", "assistant", "tool", "user"]
    assert said(router)[-2:] == ["seen", "Quick."]


async def test_nothing_is_steered_where_nothing_runs(sdk: AsyncClient) -> None:
    """It would be said to nobody."""
    session = sdk.session()
    for steer in ("Stop.", ""):
        with pytest.raises(errors.InvalidRequest):
            await session.steer(steer)
    await session.send("Hi")
    with pytest.raises(errors.InvalidRequest, match="no turn"):
        await session.steer("Stop.")


async def test_a_thread_steers_within_its_stream(router: Any) -> None:
    """The plain client waits for nothing that its own loop has to read."""
    gate = asyncio.Event()
    router.engine.plays("Hel", gate, "lo", asyncio.Event())
    router.engine.says("Stopped.")
    loop = asyncio.get_running_loop()

    def talk() -> list[Any]:
        told = []
        with Client(router.url) as client:
            session = client.session()
            for event in session.stream("Talk."):
                if not told:
                    session.steer("Stop.")
                    loop.call_soon_threadsafe(gate.set)
                told.append(event)
        return told

    told = await asyncio.to_thread(talk)
    assert [event.text for event in told[:-1]] == ["Hel", "lo", "Stopped."]
    assert said(router) == ["Talk.", "Hello", "Stop."]


async def test_a_steer_lost_with_its_line_is_said_all_the_same(router: Any) -> None:
    """The router stops the answer, and the client brings the steer itself."""
    gate = asyncio.Event()
    router.engine.plays("Hel", gate, "lo", STOP)
    async with Line(router.url) as line, AsyncClient(line.url) as client:
        session = client.session()
        events = session.stream("Talk.")
        await first_delta(events)
        line.cut()
        await session.steer("Stop.")
        gate.set()
        await rest(events)
    assert said(router) == ["Talk.", "Hello", "Stop."]


@pytest.mark.parametrize("lost", ["frame", "answer", "nothing"])
async def test_a_steer_is_taken_once_wherever_its_line_is_cut(router: Any, lost: str) -> None:
    """Before the router has it, before the client knows that, and after: the router makes the
    successor, once, and the client hears all of it."""
    gate = asyncio.Event()
    router.engine.plays("Hel", gate, "lo", asyncio.Event())
    router.engine.says("Stopped.")
    async with Line(router.url) as line, AsyncClient(line.url) as client:
        session = client.session()
        events = session.stream("Talk.")
        assert await first_delta(events) == "Hel"
        line.deaf, line.dumb = lost == "frame", lost == "answer"
        hearing = asyncio.create_task(rest(events))
        await session.steer("Stop.")
        await asyncio.sleep(0.1)
        line.cut()
        line.deaf = line.dumb = False
        await asyncio.sleep(0.2)
        gate.set()
        text, reply = await hearing
        assert (text, reply.text) == ("loStopped.", "Stopped.")
        assert said(router) == ["Talk.", "Hello", "Stop."] and len(router.engine.asked) == 2
        assert (await session.send("On.")).text != ""
        assert said(router) == ["Talk.", "Hello", "Stop.", "Stopped.", "On."]


async def test_a_steer_outlives_its_client(router: Any) -> None:
    """Who attaches hears what the model said to it, though nobody was there."""
    gate = asyncio.Event()
    router.engine.plays("Hel", gate, "lo", asyncio.Event())
    router.engine.says("Stopped.")
    async with AsyncClient(router.url) as other:
        async with Line(router.url) as line, AsyncClient(line.url) as client:
            events = client.session("s-1").stream("Talk.")
            hearing = asyncio.create_task(rest(events))
            await router.until(lambda: router.engine.running == 1)
            await asyncio.sleep(0.1)
            session = await other.attach("s-1")
            turn = session.running.id
            path = f"{router.url}/sessile/v1/turns/{turn}/steer"
            async with httpx2.AsyncClient() as http:
                for _ in range(2):
                    body = {"input": "Stop.", "idempotency_key": "k"}
                    told = (await http.post(path, json=body)).json()
                    assert told["type"] == "response.steer.accepted"
                unknown = f"{router.url}/sessile/v1/turns/resp_0/steer"
                told = (await http.post(unknown, json=body)).json()
                assert told["error"]["code"] == "response_not_found"
                told = (await http.post(path, json={"input": 3})).json()
                assert told["error"]["code"] == "invalid_input"
            line.cut()
            hearing.cancel()
        gate.set()
        text, reply = await rest(session.running.events())
        assert (text, reply.text) == ("HelloStopped.", "Stopped.")
    assert said(router) == ["Talk.", "Hello", "Stop."] and len(router.engine.asked) == 2
