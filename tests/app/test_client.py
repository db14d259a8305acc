"""The SDK against a scripted router: what it sends, and what it does when the line misbehaves."""

import asyncio
import json
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from websockets.sync.server import ServerConnection

from scripted_router import (
    AWAY,
    GONE,
    HALF,
    REST,
    Handler,
    Router,
    calls,
    drops_at_once,
    hangs_up,
    is_silent,
    refuses,
    replay,
    says,
    talks_on,
    tell,
)
from sessile import AsyncClient, Client, Done, TextDelta, ToolCall, ToolResult, errors


@pytest.fixture
def play() -> Iterator[Callable[..., Router]]:
    """Start a router that plays the given handlers."""
    routers: list[Router] = []

    def start(*script: Handler) -> Router:
        routers.append(Router(*script))
        return routers[-1]

    yield start
    for router in routers:
        router.close()


def test_a_session_is_one_connection_and_each_turn_its_own_items(play: Any) -> None:
    """The key and the session's id are in the handshake; the second turn sends the second text."""
    router = play(says("one", "."), says("two"))
    with Client(router.url, "k") as client:
        session = client.session("s-1", system="Be brief.")
        reply = session.send("a", temperature=0)
        assert (reply.text, reply.id, reply.session) == ("one.", "resp_1", "s-1")
        assert (reply.usage.prompt_tokens, reply.usage.cached_tokens) == (9, 4)
        assert list(session.stream("b"))[:-1] == [TextDelta("two")]
    (handshake,) = router.handshakes
    assert handshake.path == "/v1/responses"
    assert handshake.headers["Authorization"] == "Bearer k"
    assert handshake.headers["X-Session-ID"] == "s-1"
    first, second = router.frames
    assert (first["model"], first["temperature"]) == ("first", 0)
    assert "previous_response_id" not in first
    assert second["previous_response_id"] == "resp_1" and len(second["input"]) == 1


def test_tools_run_in_the_turn(play: Any) -> None:
    """Their results, an exception and an unknown name among them, go back to the model."""

    def good() -> dict[str, int]:
        return {"n": 1}

    def bad() -> str:
        raise ValueError("no luck")

    router = play(calls("good", "bad", "absent"), says("done"))
    with Client(router.url) as client:
        events = list(client.session(tools=[good, bad]).stream("go"))
    assert [type(event) for event in events] == [ToolCall] * 3 + [ToolResult] * 3 + [
        TextDelta,
        Done,
    ]
    outputs = {item["call_id"]: item["output"] for item in router.frames[1]["input"]}
    assert outputs["c_good"] == '{"n":1}'
    assert outputs["c_bad"] == "ValueError: no luck"
    assert "no tool named absent" in outputs["c_absent"]
    assert router.frames[1]["previous_response_id"] == "resp_1"


async def test_parallel_calls_run_side_by_side(play: Any) -> None:
    """In an AsyncSession two calls of one response wait for each other, async or in a thread."""
    meeting = threading.Barrier(2, timeout=30)

    async def one() -> str:
        await asyncio.to_thread(meeting.wait)
        return "1"

    def other() -> str:
        meeting.wait()
        return "2"

    router = play(calls("one", "other"), says("both"))
    async with AsyncClient(router.url) as client:
        reply = await client.session(tools=[one, other]).send("go")
    assert reply.text == "both"
    assert [item["output"] for item in router.frames[1]["input"]] == ["1", "2"]


def test_an_async_tool_needs_the_async_client(play: Any) -> None:
    """A plain session says so when it is made, not when the model calls."""

    async def tool() -> None: ...

    with (
        Client("http://127.0.0.1:1") as client,
        pytest.raises(errors.InvalidRequest, match="async"),
    ):
        client.session(tools=[tool])


def drops_after(text: str) -> Handler:
    def handle(router: Router, connection: ServerConnection, frame: dict[str, Any]) -> None:
        says(text)(router, connection, frame)
        connection.close(1012, "restarting")

    return handle


def test_a_connection_that_dropped_between_turns_is_opened_again(play: Any) -> None:
    """The next turn goes on from the last response, on a new connection."""
    router = play(drops_after("one"), says("two"))
    with Client(router.url) as client:
        session = client.session()
        session.send("a")
        router.ended.acquire(timeout=30)
        assert session.send("b").text == "two"
    assert len(router.handshakes) == 2
    assert router.frames[1]["previous_response_id"] == "resp_1"


async def test_a_dropped_connection_is_opened_again_in_a_loop_too(play: Any) -> None:
    """The same with AsyncClient."""
    router = play(drops_after("one"), says("two"))
    async with AsyncClient(router.url) as client:
        session = client.session()
        await session.send("a")
        await asyncio.to_thread(router.ended.acquire, timeout=30)
        assert (await session.send("b")).text == "two"
    assert len(router.handshakes) == 2


def test_a_drop_inside_a_turn_is_taken_up_again(play: Any) -> None:
    """From whichever router answers, until the turn's end, and nothing is told twice; the next
    turn has a connection again."""
    router = play(hangs_up, says("two"))
    router.replays = [AWAY, replay(*HALF, *REST[:1]), replay(*HALF, *REST)]
    with Client(router.url) as client:
        session = client.session()
        events = list(session.stream("a"))
        assert events[:-1] == [TextDelta("half"), TextDelta(" and"), TextDelta(" half")]
        assert events[-1].reply.text == "half and half"
        assert session.send("b").text == "two"
    assert router.asked == ["/v1/responses/resp_x?stream=true"] * 3
    assert router.frames[1]["previous_response_id"] == "resp_x"
    assert [h.headers["X-Sessile-On-Disconnect"] for h in router.handshakes] == ["detach"] * 2


def test_a_drop_before_the_answer_repeats_the_request(play: Any) -> None:
    """Word for word, under the same key, so that the turn runs once."""
    router = play(drops_at_once, drops_at_once, says("one"), says("two"))
    with Client(router.url) as client:
        session = client.session()
        assert session.send("a").text == "one"
        session.send("b")
    first, second, third, other = router.frames
    assert first == second == third and len(router.handshakes) == 3
    assert other["idempotency_key"] != first["idempotency_key"]


def test_a_connection_too_old_for_a_turn_is_changed(play: Any) -> None:
    """The router begins nothing on it, and says so."""

    def is_old(router: Router, connection: ServerConnection, frame: dict[str, Any]) -> None:
        told = {"code": "websocket_connection_limit_reached", "message": "too old"}
        tell(connection, "error", error=told)

    router = play(is_old, says("one"))
    with Client(router.url) as client:
        assert client.session().send("a").text == "one"
    assert len(router.handshakes) == 2 and router.frames[0] == router.frames[1]


def test_a_turn_whose_events_are_gone_ends_as_its_response_did(play: Any) -> None:
    """What was not heard is told from the response."""
    router = play(hangs_up)
    text = [{"type": "output_text", "text": "half and more"}]
    whole = {
        "id": "resp_x",
        "status": "completed",
        "output": [{"type": "message", "content": text}],
    }
    gone = (400, '{"error":{"message":"not kept","code":"invalid_request","param":"stream"}}')
    running = (200, '{"id":"resp_x","status":"in_progress","output":[]}')
    router.replays = [gone, running, (200, json.dumps(whole))]
    with Client(router.url) as client:
        events = list(client.session().stream("a"))
    assert events[:2] == [TextDelta("half"), TextDelta(" and more")]


def test_what_cannot_be_taken_up_says_what_to_do(play: Any) -> None:
    """A response that the router has forgotten, a turn that is not stored, a router that does not
    come back."""
    router = play(says("one"), hangs_up, says("three"), hangs_up, hangs_up)
    with Client(router.url, reconnect_s=0.2) as client:
        session = client.session("s-1")
        session.send("a")
        router.replays = [GONE]
        with pytest.raises(errors.StreamBroken, match="send the turn again"):
            session.send("b")
        assert session.send("c").text == "three"
        assert router.frames[2]["previous_response_id"] == "resp_1"
        with pytest.raises(errors.StreamBroken, match="restarting"):
            session.send("d", store=False)
        assert "X-Sessile-On-Disconnect" not in router.handshakes[-1].headers
        router.replays = [AWAY] * 100
        with pytest.raises(errors.RouterUnreachable, match=r"0\.2 s .*attach to session 's-1'"):
            session.send("e")


def test_a_router_that_tells_nothing_new_is_no_progress(play: Any) -> None:
    """However often it answers: the time without a new event is what is bounded."""
    router = play(hangs_up)
    router.replays = [replay(*HALF)] * 1000
    with (
        Client(router.url, reconnect_s=0.2) as client,
        pytest.raises(errors.RouterUnreachable, match="attach"),
    ):
        client.session().send("a")


def test_a_stream_left_early_stops_its_turn(play: Any) -> None:
    """The connection is closed under it, and the next turn follows the last whole one."""
    router = play(says("one"), talks_on, says("three"))
    with Client(router.url) as client:
        session = client.session()
        session.send("a")
        stream = session.stream("b")
        assert next(stream) == TextDelta("and on ")
        assert session.send("c").text == "three"
        assert list(stream) == []
    assert router.frames[2]["previous_response_id"] == "resp_1"


async def test_a_stream_left_early_stops_its_turn_in_a_loop_too(play: Any) -> None:
    """The same with AsyncClient, and for a task that was cancelled inside a turn."""
    router = play(talks_on, is_silent, says("three"))
    async with AsyncClient(router.url) as client:
        session = client.session()
        async for event in session.stream("a"):
            assert event == TextDelta("and on ")
            break
        second = asyncio.create_task(session.send("b"))
        for _ in range(2):
            await asyncio.to_thread(router.began.acquire, timeout=30)
        second.cancel()
        with pytest.raises(asyncio.CancelledError):
            await second
        assert (await session.send("c")).text == "three"


async def test_one_turn_at_a_time(play: Any) -> None:
    """A second turn beside a running one is refused at once, with what to do instead."""
    router = play(is_silent)
    async with AsyncClient(router.url) as client:
        session = client.session()
        first = asyncio.create_task(session.send("a"))
        await asyncio.to_thread(router.began.acquire, timeout=30)
        with pytest.raises(errors.SessionBusy, match="fork"):
            await session.send("b")
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first


def test_errors_are_those_of_the_server(play: Any) -> None:
    """An error event raises the class of its code; a refused handshake that of its body."""
    router = play(refuses)
    with Client(router.url) as client, pytest.raises(errors.PromptTooLong, match="too long"):
        client.session().send("a")
    with Client(router.url, "wrong") as client, pytest.raises(errors.Unauthorized, match="no such"):
        client.session(model="m").send("a")


async def test_a_silent_router_is_given_up(play: Any) -> None:
    """`timeout_s` is the longest silence inside a turn, on both clients."""
    router = play(is_silent, is_silent)
    async with AsyncClient(router.url, timeout_s=0.2) as client:
        with pytest.raises(errors.ReplicaTimeout, match="0.2 s"):
            await client.session().send("a")

    def in_thread() -> None:
        with Client(router.url, timeout_s=0.2) as client:
            client.session().send("a")

    with pytest.raises(errors.ReplicaTimeout):
        await asyncio.to_thread(in_thread)


async def test_no_router_there_names_the_remedy() -> None:
    """By WebSocket and by HTTP, in threads and in loops: where, and `sessile up`."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        with Client(url) as client:
            for doomed in (
                lambda: client.session(model="m").send("a"),
                lambda: client.session().send("a"),
                lambda: client.attach("s"),
            ):
                with pytest.raises(errors.RouterUnreachable, match=f"{url}.*sessile up"):
                    doomed()
        async with AsyncClient(url) as other:
            for model in ("m", None):
                with pytest.raises(errors.RouterUnreachable, match="sessile up"):
                    await other.session(model=model).send("a")


def test_what_cannot_be_sent_is_refused_here(play: Any) -> None:
    """An id that no header can carry, a fork of none, a turn after the end."""
    with Client("http://127.0.0.1:1") as client:
        with pytest.raises(errors.InvalidRequest, match="ASCII"):
            client.session("a\nb", model="m").send("x")
        with pytest.raises(errors.InvalidRequest, match="at least one"):
            client.session().fork(0)
        assert len(client.session().fork(3)) == 3
        session = client.session()
        session.close()
        session.close()
        with pytest.raises(errors.SessionExpired):
            session.send("x")


def test_an_error_inside_a_with_block_is_the_one_that_is_told(play: Any) -> None:
    """Closing the session fails too when the router is gone; the first error is the news."""
    router = play(says("one"))
    with Client(router.url) as client:
        with pytest.raises(ZeroDivisionError), client.session() as session:
            session.send("a")
            raise ZeroDivisionError
        with pytest.raises(errors.SessileError), client.session() as session:
            router.script.append(says("two"))
            session.send("b")
