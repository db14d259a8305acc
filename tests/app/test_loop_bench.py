"""The tool loop's benchmark, and its line, before a router and a fake replica."""

import asyncio
from typing import Any

import pytest

from sessile.lab.fake_replica import FakeReplica
from sessile.lab.link import serve_link
from sessile.lab.loop_bench import Setup, compare, prewarmed, summed


@pytest.fixture
async def served(start: Any) -> Any:
    """A router before a fake replica that serves model `m`."""
    return await start([FakeReplica(model="m")])


async def test_the_loop_sends_what_is_new_over_a_websocket(served):
    """Its turns stay as large as they were; those of stateless HTTP grow by each turn, and both
    make the same prompts."""
    setup = Setup(url=served.url, model="m", turns=8, rounds=2, result_tokens=50, system_tokens=50)
    samples = await compare(setup)
    websocket, http = summed(samples)
    assert abs(websocket.last_bytes - websocket.third_bytes) < 0.2 * websocket.third_bytes
    assert http.last_bytes > http.third_bytes + 5 * 200
    assert websocket.prompt_tokens == http.prompt_tokens
    tools = [seen.body["messages"][-1]["role"] for seen in served.engine.seen]
    assert tools.count("tool") == 2 * 2 * 7
    assert all(sample.ttft_s is not None for sample in samples)


async def test_prewarming_is_measured_on_the_same_prompt(served):
    """The measured turn's prompt is as long either way, and is in the cache where it was
    prewarmed."""
    setup = Setup(url=served.url, model="m", rounds=1, result_tokens=500, pause_s=0.0)
    found = await prewarmed(setup)
    assert set(found) == {"prewarmed", "cold"}
    last = [s for s in served.engine.seen if s.body["messages"][-1]["content"] == "Go on."]
    warm, cold = last
    assert abs(warm.prompt_tokens - cold.prompt_tokens) < 5
    assert warm.cached_tokens > cold.cached_tokens + 400


async def test_a_line_that_starts_slowly_passes_all(served):
    """Large requests wait for what is on its way to be heard of; none is lost."""
    setup = Setup(
        url=served.url, model="m", turns=2, rounds=1, system_tokens=30_000, round_trip_ms=1.0,
        slow_start=True,
    )  # fmt: skip
    websocket, http = summed(await compare(setup))
    assert websocket.last_bytes > 120_000 and http.last_bytes > 120_000


async def test_a_line_takes_its_time_and_counts():
    """What is sent arrives whole and in order, no sooner than the line allows; a cut line is
    noticed by both ends."""

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1000):
            writer.write(data)
        writer.close()

    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    target = server.sockets[0].getsockname()[:2]
    loop = asyncio.get_running_loop()
    async with serve_link(target, round_trip_s=0.04, bits_per_s=8e5) as link:
        reader, writer = await asyncio.open_connection("127.0.0.1", link.port)
        began = loop.time()
        writer.write(bytes(range(256)) * 20)
        assert await reader.readexactly(5120) == bytes(range(256)) * 20
        # Twice through 100,000 bytes a second, and a round trip.
        assert loop.time() - began >= 0.04 + 5120 / 1e5
        assert (link.up_bytes, link.down_bytes) == (5120, 5120)
        link.cut()
        with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
            await reader.readexactly(1)
        writer.close()
    server.close()
    await server.wait_closed()
