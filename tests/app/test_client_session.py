"""The SDK's sessions before a real router: steered, prewarmed, in the background, attached."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx2
import pytest
from websockets.asyncio.client import connect

from sessile import AsyncClient, AsyncReply, AsyncSession, Client, Done, TextDelta, errors

STOP = {"choices": [{"delta": {}, "finish_reason": "stop"}]}


@pytest.fixture
async def client(router: Any) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(router.url) as client:
        yield client


def said(router: Any, request: int = -1) -> list[Any]:
    """The contents of an engine call's messages."""
    return [message["content"] for message in router.engine.asked[request]["messages"]]


async def first_delta(events: Any) -> str:
    async for event in events:
        if isinstance(event, TextDelta):
            return event.text
    raise AssertionError("the turn ended without text")


async def rest(events: Any) -> tuple[str, AsyncReply]:
    """The text of the events that are left, and the reply."""
    text = ""
    async for event in events:
        if isinstance(event, TextDelta):
            text += event.text
        elif isinstance(event, Done):
            return text, event.reply
    raise AssertionError("the turn has no end")


# -- steers


async def test_a_turn_is_steered(router: Any, client: AsyncClient) -> None:
    """What was said stays, the steer follows it, and the reply is what the model then says."""
    gate = asyncio.Event()
    router.engine.plays("Hel", gate, "lo", asyncio.Event())
    router.engine.says("Stopped.")
    session = client.session()
    events = session.stream("Talk.")
    assert await first_delta(events) == "Hel"
    await session.steer("Stop.")
    gate.set()
    text, reply = await rest(events)
    assert (text, reply.text) == ("loStopped.", "Stopped.")
    assert said(router) == ["Talk.", "Hello", "Stop."]
    await session.send("Thanks.")
    assert said(router) == ["Talk.", "Hello", "Stop.", "Stopped.", "Thanks."]


async def test_a_steer_is_said_once_however_late_it_comes(router: Any, client: AsyncClient) -> None:
    """Before the answer has begun, and while it is ending: it is in the conversation, once."""
    gate = asyncio.Event()
    router.engine.plays(gate, "Hello.", STOP)
    session = client.session()
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
    router: Any, client: AsyncClient
) -> None:
    """Behind them, in the same request."""
    session: AsyncSession

    async def look() -> str:
        await session.steer("Quick.")
        return "seen"

    router.engine.calls("look", "{}")
    session = client.session(tools=[look])
    await session.send("Look.")
    messages = router.engine.asked[-1]["messages"]
    assert [message["role"] for message in messages] == ["user", "assistant", "tool", "user"]
    assert said(router)[-2:] == ["seen", "Quick."]


async def test_nothing_is_steered_where_nothing_runs(client: AsyncClient) -> None:
    """It would be said to nobody."""
    session = client.session()
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


# -- prewarming


async def test_what_was_prewarmed_is_sent_once(router: Any, client: AsyncClient) -> None:
    """The engine reads it without an answer; the next turn follows it and sends what is new."""
    session = client.session()
    usage = await session.prewarm("A long document.")
    assert (usage.prompt_tokens, usage.completion_tokens) == (1, 0)
    assert router.engine.asked[0]["max_tokens"] == 1
    await session.send("Sum it up.")
    assert said(router) == ["A long document.", "Sum it up."]


# -- tools


async def test_parallel_tools_over_many_rounds(router: Any, client: AsyncClient) -> None:
    """A loop of calls sends each output once; a failure is the model's to read."""

    def add(a: int, b: int) -> int:
        return a + b

    for n in range(5):
        router.engine.calls("add", json.dumps({"a": n, "b": 1}), id=f"c{n}")
    router.engine.calls("add", '{"a": "x"}', id="bad")
    reply = await client.session(tools=[add]).send("Count.")
    assert len(reply.tool_calls) == 6 and len(router.engine.asked) == 7
    outputs = [m["content"] for m in router.engine.asked[-1]["messages"] if m["role"] == "tool"]
    assert outputs[:5] == ["1", "2", "3", "4", "5"] and "Error" in outputs[5]


# -- left, lost and found


async def test_a_turn_that_is_left_stops_at_its_engine(router: Any, client: AsyncClient) -> None:
    """Although it outlives a lost connection; the session goes on from where it was."""
    session = client.session()
    await session.send("One.")
    router.engine.plays("Hel", asyncio.Event())
    await first_delta(session.stream("Two."))
    reply = await session.send("Three.")
    assert router.engine.aborted == 1 and said(router)[-1] == "Three."
    assert "Two." not in said(router) and reply.text


class Line:
    """A TCP relay that can be cut, as a bad network is. While it is `deaf`, what the client says is
    lost, while it is `dumb`, what it is told."""

    def __init__(self, url: str) -> None:
        self._target = int(url.rpartition(":")[2])
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self.refuses = self.deaf = self.dumb = False

    async def __aenter__(self) -> "Line":
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        self.cut()
        await asyncio.sleep(0)

    def cut(self) -> None:
        """Every connection ends at once, without a farewell."""
        for writer in self._writers:
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.refuses:
            writer.transport.abort()
            return
        there, back = await asyncio.open_connection("127.0.0.1", self._target)
        self._writers |= {writer, back}
        await asyncio.gather(
            _pipe(reader, back, lambda: self.deaf), _pipe(there, writer, lambda: self.dumb)
        )
        self._writers -= {writer, back}


async def _pipe(
    source: asyncio.StreamReader, sink: asyncio.StreamWriter, loses: Callable[[], bool]
) -> None:
    try:
        while data := await source.read(65536):
            if not loses():
                sink.write(data)
            await sink.drain()
    except OSError:
        pass
    finally:
        sink.close()


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


# -- by itself


async def test_a_turn_in_the_background(router: Any, client: AsyncClient) -> None:
    """It is accepted at once, heard from its first event, and the next turn waits for it."""
    gate = asyncio.Event()
    router.engine.plays("Hel", gate, "lo", STOP)
    session = client.session()
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


async def test_a_turn_in_the_background_calls_tools(router: Any, client: AsyncClient) -> None:
    """While somebody listens; what was heard is not told again."""

    def look() -> str:
        return "seen"

    router.engine.calls("look", "{}")
    router.engine.says("Done.")
    run = await client.session(tools=[look]).background("Look.")
    async for _ in run.events():
        break
    reply = await run.wait()
    assert (reply.text, [call.name for call in reply.tool_calls]) == ("Done.", ["look"])
    assert len(router.engine.asked) == 2


async def test_a_turn_in_the_background_is_cancelled(router: Any, client: AsyncClient) -> None:
    """The engine stops, the reply says so, and the session is as before."""
    session = client.session()
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


# -- another handle's turn


async def test_a_session_says_what_becomes_of_a_turn_beside_another(
    router: Any, client: AsyncClient
) -> None:
    """Over the WebSocket and in the background: refused, or run beside it."""
    session = client.session()
    router.engine.says("Hi")
    await session.send("Hi")
    refuses, forks = [
        await client.attach(session.id, when_busy=when_busy) for when_busy in ("refuse", "fork")
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
        await client.session(when_busy="never").send("Hi")  # type: ignore[arg-type]


async def test_a_browser_says_it_in_the_address(router: Any, client: AsyncClient) -> None:
    """As no page can send headers with a WebSocket; what is unknown is refused by its name."""
    for told, code in (("when_busy=never", "invalid_request"), ("when_busy=fork", None)):
        async with connect(f"{router.ws_url}?{told}") as ws:
            await ws.send(json.dumps({"type": "response.create", "model": "m", "input": "Hi"}))
            event = json.loads(await ws.recv())
            assert event.get("error", {}).get("code") == code
