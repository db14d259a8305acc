"""The SDK where processes die: its own, and its router's; and with the real small model."""

import asyncio
import sys
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from sdk_turns import rest
from sessile import AsyncClient, Client, Done, TextDelta
from sessile.lab.fake_replica import FakeReplica, Fault, serve_fake

WORDS = " ".join(f"w{n}" for n in range(40))
SLOW = Fault(pause_s=0.05)

# Another process, which talks until it is killed, and says what it has heard.
TALKS = """
import sys
from sessile import Client, TextDelta
with Client(sys.argv[1]) as client:
    session = client.session(sys.argv[2], system="Be brief.")
    for event in session.stream(sys.argv[3]):
        if isinstance(event, TextDelta):
            print(event.text, end="|", flush=True)
"""


@pytest.fixture
async def replica() -> AsyncIterator[FakeReplica]:
    async with serve_fake() as replica:
        yield replica


@pytest.fixture
async def router(mortal: Any, redis_server: Any, replica: FakeReplica) -> Any:
    """A router of its own before an engine that can go on from a text."""
    router = mortal("--replica", f"sglang={replica.url}", "--redis", redis_server.url)
    await router.start()
    return router


async def heard(events: Any, words: int) -> str:
    """So many deltas."""
    text = ""
    async for event in events:
        text += event.text
        words -= 1
        if not words:
            break
    return text


async def test_a_router_killed_in_the_middle_of_a_turn(router: Any, replica: Any) -> None:
    """The session finds the one that is started in its place, and is told the rest of the text
    there, word for word; the next turn goes on."""
    replica.fail(SLOW)
    async with AsyncClient(router.url) as client:
        session = client.session()
        events = session.stream(WORDS)
        text = await heard(events, 8)
        router.kill()
        await asyncio.sleep(0.5)
        await router.start()
        more, reply = await rest(events)
        assert text + more == reply.text == f"echo: {WORDS}"
        assert (await session.send("next")).text == "echo: next"
    await replica.until(lambda replica: replica.running == 0)


async def test_a_router_killed_before_the_first_token(router: Any, replica: Any) -> None:
    """The same turn, under its key: the router that comes takes up the one that was accepted."""
    replica.fail(Fault(hang=True))
    async with AsyncClient(router.url) as client:
        sending = asyncio.create_task(client.session().send(WORDS))
        await replica.until(lambda replica: replica.running == 1)
        await asyncio.sleep(0.1)
        router.kill()
        await router.start()
        assert (await sending).text == f"echo: {WORDS}"
    assert len(replica.seen) == 2


@pytest.mark.parametrize("says", ["before", "while it is away"])
async def test_a_router_killed_with_a_steer(router: Any, replica: Any, says: str) -> None:
    """Whether it had accepted the steer or never heard of it, the one that takes the turn over
    stops the answer, and the model is told the steer, once."""
    replica.fail(*[Fault(pause_s=0.5)] * 2)
    async with AsyncClient(router.url) as client:
        session = client.session()
        events = session.stream(WORDS)
        await heard(events, 2)
        hearing = asyncio.create_task(rest(events))
        if says == "before":
            await session.steer("Stop.")
            await asyncio.sleep(0.2)  # less than a token takes
            router.kill()
        else:
            router.kill()
            await session.steer("Stop.")
        await asyncio.sleep(0.2)
        await router.start()
        _, reply = await hearing
        assert reply.text == "echo: Stop."
        told = [call.body["messages"] for call in replica.seen]
        said = [[message["content"] for message in messages] for messages in told]
        asked = [contents for contents in said if contents[-1] == "Stop."]
        assert len(asked) == 1 and len(asked[0]) == 3 and asked[0][1].startswith("echo: w0")
        assert len(asked[0][1]) < len(WORDS)
        assert (await session.send("next")).text == "echo: next"
    await replica.until(lambda replica: replica.running == 0)


async def test_a_router_killed_within_a_tool_loop(router: Any, replica: Any) -> None:
    """Twenty calls, the router killed every so often: each tool's output is sent once, in order."""
    rounds: list[int] = []

    async def note(n: int) -> str:
        rounds.append(n)
        if len(rounds) in (5, 12):
            router.kill()
            await router.start()
        return f"noted {len(rounds)}"

    async with AsyncClient(router.url) as client:
        session = client.session(tools=[note])
        reply = await session.send('call note {"n": 1} 20 times')
        assert len(rounds) == len(reply.tool_calls) == 20 and reply.text == "echo: noted 20"
    last = replica.seen[-1].body["messages"]
    outputs = [message["content"] for message in last if message["role"] == "tool"]
    assert outputs == [f"noted {n + 1}" for n in range(20)]


async def test_a_process_killed_in_the_middle_of_a_turn(router: Any, replica: Any) -> None:
    """Another attaches while the turn runs, hears it from its first word, and goes on."""
    replica.fail(SLOW)
    talking = await asyncio.create_subprocess_exec(
        sys.executable, "-c", TALKS, router.url, "s-1", WORDS, stdout=asyncio.subprocess.PIPE
    )
    assert talking.stdout is not None
    for _ in range(5):
        await talking.stdout.readuntil(b"|")
    talking.kill()
    await talking.wait()
    async with AsyncClient(router.url) as client:
        session = await client.attach("s-1")
        assert session.running is not None
        text, reply = await rest(session.running.events())
        assert text == reply.text == f"echo: {WORDS}"
        assert (await session.send("next")).text == "echo: next"
    assert len(replica.seen) == 2
    system = replica.seen[-1].body["messages"][0]
    assert (system["role"], system["content"]) == ("system", "Be brief.")


# -- the real small model


@pytest.fixture
def real(sessile_up: str) -> Iterator[Client]:
    with Client(sessile_up) as client:
        yield client


def test_a_real_document_is_read_before_it_is_asked_about(real: Client) -> None:
    """The turn that follows finds it in the cache."""
    with real.session(system="You are brief.") as session:
        usage = session.prewarm("The river is long and the hill is high. " * 40)
        reply = session.send("Sum it up.", max_output_tokens=8)
        assert usage.prompt_tokens is not None and usage.completion_tokens == 0
        assert (reply.usage.cached_tokens or 0) > 0.8 * usage.prompt_tokens
        assert reply.text


def test_a_real_turn_is_steered(real: Client) -> None:
    """It stops early, and its reply is the answer to what was said into it."""
    with real.session() as session:
        told = []
        for event in session.stream("Count from one to one hundred in words.", temperature=0):
            if isinstance(event, TextDelta) and len(told) == 3:
                session.steer("Now say only: done.")
            told.append(event)
        done = told[-1]
        assert isinstance(done, Done) and done.reply.text and done.reply.incomplete is None
        said = "".join(event.text for event in told if isinstance(event, TextDelta))
        assert said.endswith(done.reply.text) and said != done.reply.text


def test_a_real_turn_in_the_background_is_found_by_others(real: Client, sessile_up: str) -> None:
    """Its events are the same for whoever listens."""
    session = real.session("by-itself")
    run = session.background("Name three rivers.", max_output_tokens=60, temperature=0)
    with Client(sessile_up) as other:
        found = other.attach("by-itself")
        theirs = found.running.wait().text if found.running else found.send("Go on.").text
        mine = run.wait().text
        assert mine and theirs
        if found.running is None:
            assert found.send("Which is the longest?", max_output_tokens=8).text
    session.close()
