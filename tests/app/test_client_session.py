"""The SDK's sessions before a real router: what is sent once, and what is lost with a line."""

import asyncio
import json
from typing import Any

import pytest
from websockets.asyncio.client import connect

from bad_line import Line
from scripted_engine import STOP
from sdk_turns import first_delta, rest, said
from sessile import AsyncClient, errors


async def test_what_was_prewarmed_is_sent_once(router: Any, sdk: AsyncClient) -> None:
    """The engine reads it without an answer; the next turn follows it and sends what is new."""
    session = sdk.session()
    usage = await session.prewarm("A long document.")
    assert (usage.prompt_tokens, usage.completion_tokens) == (1, 0)
    assert router.engine.asked[0]["max_tokens"] == 1
    await session.send("Sum it up.")
    assert said(router) == ["A long document.", "Sum it up."]


async def test_parallel_tools_over_many_rounds(router: Any, sdk: AsyncClient) -> None:
    """A loop of calls sends each output once; a failure is the model's to read."""

    def add(a: int, b: int) -> int:
        return a + b

    for n in range(5):
        router.engine.calls("add", json.dumps({"a": n, "b": 1}), id=f"c{n}")
    router.engine.calls("add", '{"a": "x"}', id="bad")
    reply = await sdk.session(tools=[add]).send("Count.")
    assert len(reply.tool_calls) == 6 and len(router.engine.asked) == 7
    outputs = [m["content"] for m in router.engine.asked[-1]["messages"] if m["role"] == "tool"]
    assert outputs[:5] == ["1", "2", "3", "4", "5"] and "Error" in outputs[5]


async def test_a_turn_that_is_left_stops_at_its_engine(router: Any, sdk: AsyncClient) -> None:
    """Although it outlives a lost connection; the session goes on from where it was."""
    session = sdk.session()
    await session.send("One.")
    router.engine.plays("Hel", asyncio.Event())
    await first_delta(session.stream("Two."))
    reply = await session.send("Three.")
    assert router.engine.aborted == 1 and said(router)[-1] == "Three."
    assert "Two." not in said(router) and reply.text


async def test_a_cut_line_loses_no_token_and_doubles_none(router: Any) -> None:
    """However often, over the WebSocket and while the turn is followed; the engine is asked once,
    and the next turn goes on."""
    gates = [asyncio.Event() for _ in range(4)]
    words = [f"w{n} " for n in range(5)]
    script: list[Any] = [words[0]]
    for gate, word in zip(gates, words[1:], strict=True):
        script += [gate, word]
    router.engine.plays(*script, STOP)
    async with Line(router.url) as line, AsyncClient(line.url) as client:
        session = client.session()
        events = session.stream("Talk.")
        text = await first_delta(events)
        for gate in gates[:-1]:
            line.cut()
            gate.set()
            text += await first_delta(events)
        line.refuses = True
        line.cut()
        gates[-1].set()
        end = asyncio.create_task(rest(events))
        await asyncio.sleep(0.3)
        line.refuses = False
        more, reply = await end
        assert text + more == reply.text == "".join(words)
        assert len(router.engine.asked) == 1
        await session.send("On.")
        assert said(router) == ["Talk.", "".join(words), "On."]


async def test_a_line_cut_before_the_answer_runs_the_turn_once(router: Any) -> None:
    """The request is repeated under its key."""
    gate = asyncio.Event()
    router.engine.plays(gate, "Hello", STOP)
    async with Line(router.url) as line, AsyncClient(line.url) as client:
        sending = asyncio.create_task(client.session().send("Talk."))
        await router.until(lambda: router.engine.running == 1)
        line.cut()
        await asyncio.sleep(0.2)
        gate.set()
        assert (await sending).text == "Hello"
    assert len(router.engine.asked) == 1


async def test_a_key_on_the_websocket_runs_a_turn_once(router: Any) -> None:
    """On one connection and on another; what the engine is asked holds nothing of it."""
    frame = {"type": "response.create", "model": "m", "input": "Hi", "idempotency_key": "k"}

    async def ask(**changes: Any) -> dict[str, Any]:
        async with connect(router.ws_url) as ws:
            await ws.send(json.dumps({**frame, **changes}))
            while True:
                event: dict[str, Any] = json.loads(await ws.recv())
                if event["type"] in ("response.completed", "error"):
                    return event

    first, again, other = await ask(), await ask(), await ask(idempotency_key="other")
    assert first["response"]["id"] == again["response"]["id"] != other["response"]["id"]
    assert len(router.engine.asked) == 2 and "idempotency_key" not in router.engine.asked[0]
    for wrong in ("", 1, "k" * 300):
        assert (await ask(idempotency_key=wrong))["error"]["param"] == "idempotency_key"


async def test_a_session_says_what_becomes_of_a_turn_beside_another(
    router: Any, sdk: AsyncClient
) -> None:
    """Over the WebSocket and in the background: refused, or run beside it."""
    session = sdk.session()
    router.engine.says("Hi")
    await session.send("Hi")
    refuses, forks = [
        await sdk.attach(session.id, when_busy=when_busy) for when_busy in ("refuse", "fork")
    ]
    gate = asyncio.Event()
    router.engine.plays("Hel", gate, "lo", STOP)
    events = session.stream("Talk.")
    assert await first_delta(events) == "Hel"
    with pytest.raises(errors.SessionBusy):
        await refuses.send("Beside.")
    with pytest.raises(errors.SessionBusy):
        await (await refuses.background("Beside.")).wait()
    router.engine.says("Forked.")
    reply = await forks.send("Beside.")
    assert reply.text == "Forked." and not gate.is_set()
    gate.set()
    assert (await rest(events))[1].text == "Hello"
    with pytest.raises(errors.InvalidRequest, match="queue, fork or refuse"):
        await sdk.session(when_busy="never").send("Hi")  # type: ignore[arg-type]


async def test_a_browser_says_it_in_the_address(router: Any, sdk: AsyncClient) -> None:
    """As no page can send headers with a WebSocket; what is unknown is refused by its name."""
    for told, code in (("when_busy=never", "invalid_request"), ("when_busy=fork", None)):
        async with connect(f"{router.ws_url}?{told}") as ws:
            await ws.send(json.dumps({"type": "response.create", "model": "m", "input": "Hi"}))
            event = json.loads(await ws.recv())
            assert event.get("error", {}).get("code") == code
