"""Tool loops of twenty calls over the WebSocket, by OpenAI's own clients, before real routers on
one real Redis; the replicas are scripted to call a tool that often."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import openai
import pytest
from agents import (
    Agent,
    OpenAIProvider,
    RunConfig,
    Runner,
    function_tool,
    set_default_openai_responses_transport,
    set_tracing_disabled,
)

from sessile.engines.supervisor import free_ports
from sessile.lab.fake_replica import FakeReplica, Fault, serve_fake
from sessile.lab.link import Link, serve_link
from sessile.lab.processes import all_ready, child

CALLS = 20
ASKED = f'call weather {{"city": "Oslo"}} {CALLS} times'
WEATHER: Any = {
    "type": "function",
    "name": "weather",
    "strict": False,
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
}


class Served:
    """Two routers before two replicas, and a line to the first that can be turned to the other."""

    def __init__(self, line: Link, ports: list[int], replicas: list[FakeReplica]) -> None:
        self.line = line
        self.ports = ports
        self.replicas = replicas

    @property
    def url(self) -> str:
        """Where clients connect."""
        return f"http://127.0.0.1:{self.line.port}/v1"

    @property
    def outputs(self) -> list[int]:
        """Tool outputs in each prompt that the replicas were given, in the order of its length."""
        roles = [
            [message["role"] for message in seen.body["messages"]]
            for replica in self.replicas
            for seen in replica.seen
        ]
        return sorted(each.count("tool") for each in roles)


@pytest.fixture
async def served(redis_server: Any) -> AsyncIterator[Served]:
    async with AsyncExitStack() as stack:
        replicas = [await stack.enter_async_context(serve_fake()) for _ in range(2)]
        named = [part for r in replicas for part in ("--replica", f"openai={r.url}")]
        ports = free_ports(2)
        for port in ports:
            url = f"http://127.0.0.1:{port}"
            command = ["-m", "sessile.cli", "serve", *named, "--redis", redis_server.url,
                       "--port", str(port)]  # fmt: skip
            await stack.enter_async_context(child(command, url, "/ready", 60.0))
            await all_ready(url, 60.0)
        line = await stack.enter_async_context(serve_link(("127.0.0.1", ports[0])))
        yield Served(line, ports, replicas)


def flat(sent: list[int]) -> bool:
    """Whether no turn has sent more than a fifth more than the third."""
    return all(abs(size - sent[2]) <= 0.2 * sent[2] for size in sent[2:])


@pytest.mark.parametrize("breaks", [False, True])
async def test_openais_connection_runs_a_loop(served: Served, breaks: bool) -> None:
    """Each turn sends its new items only. A line that breaks in the middle is mended by the client
    itself, which goes on at the other router where it was."""
    sent: list[int] = []
    reconnected = 0

    async with openai.AsyncOpenAI(base_url=served.url, api_key="none", max_retries=0) as client:
        previous: dict[str, Any] = {}
        items: Any = ASKED

        async def send() -> None:
            await connection.response.create(model="fake", input=items, tools=[WEATHER], **previous)

        again = asyncio.Event()

        def on_reconnecting(event: Any) -> None:
            nonlocal reconnected
            reconnected += 1
            again.set()

        async with client.responses.connect(
            on_reconnecting=on_reconnecting, initial_delay=0.05
        ) as connection:
            calls = 0
            await send()
            before = 0
            async for event in connection:
                assert event.type not in ("error", "response.failed"), event
                if event.type != "response.completed":
                    continue
                sent.append(served.line.up_bytes - before)
                before = served.line.up_bytes
                made = event.response
                called = [item for item in made.output if item.type == "function_call"]
                if not called:
                    break
                calls += 1
                previous = {"previous_response_id": made.id}
                items = [
                    {"type": "function_call_output", "call_id": c.call_id, "output": "sunny"}
                    for c in called
                ]
                if breaks and calls == 7:
                    served.line.target = ("127.0.0.1", served.ports[1])
                    served.line.cut()
                    sending = asyncio.create_task(resend(again, send))
                    continue
                await send()
    assert calls == CALLS and made.output_text == "echo: sunny"
    assert served.outputs == list(range(CALLS + 1))
    if breaks:
        await sending
        assert reconnected == 1 and served.line.connections == 2
    else:
        assert flat(sent)


async def resend(again: asyncio.Event, send: Any) -> None:
    """Once the client reconnects: what is sent then waits for the new connection."""
    await again.wait()
    await send()


async def test_openai_agents_runs_a_loop(served: Served) -> None:
    """By its WebSocket transport, one connection, each turn with its new items only."""
    sent: list[int] = []

    @function_tool
    def weather(city: str) -> str:
        """The weather of a city."""
        sent.append(served.line.up_bytes)
        return f"sunny in {city}"

    set_tracing_disabled(True)
    set_default_openai_responses_transport("websocket")
    try:
        async with openai.AsyncOpenAI(base_url=served.url, api_key="none") as client:
            provider = OpenAIProvider(openai_client=client)
            result = await Runner.run(
                Agent(name="a", model="fake", tools=[weather]),
                ASKED,
                max_turns=CALLS + 5,
                auto_previous_response_id=True,
                run_config=RunConfig(model_provider=provider),
            )
            await provider.aclose()
    finally:
        set_default_openai_responses_transport("http")
    assert result.final_output == "echo: sunny in Oslo"
    assert len(sent) == CALLS and served.line.connections == 1
    assert flat([after - before for before, after in zip(sent, sent[1:], strict=False)])
    assert served.outputs == list(range(CALLS + 1))


async def test_a_forked_lane_and_a_steer_by_openais_client(served: Served) -> None:
    """Its own methods for lanes, steers and prewarming meet what they were made for."""
    for replica in served.replicas:
        replica.always = Fault(pause_s=0.02)  # a moment for each word
    async with (
        openai.AsyncOpenAI(base_url=served.url, api_key="none", max_retries=0) as client,
        client.responses.connect() as connection,
    ):
        long = " ".join(f"w{number}" for number in range(60))
        await connection.response.create(
            model="fake", input="before", prompt_cache_options={"prewarm": True}
        )
        warm = await until(connection, "response.completed")
        assert warm.response.output == []
        await connection.response.create(
            model="fake", input=long, previous_response_id=warm.response.id, stream_id="a"
        )
        begun = await until(connection, "response.output_text.delta")
        assert begun.stream_id == "a"
        active = "resp_" + begun.item_id.removeprefix("msg_")[:-2]
        await connection.response.steer(previous_response_id=active, input="stop")
        accepted = await until(connection, "response.steer.accepted")
        assert accepted.steer.previous_response_id == active
        ended = await until(connection, "response.incomplete")
        assert ended.response.incomplete_details.reason == "steered"
        said = ended.response.output_text
        assert said and f"echo: {long}".startswith(said) and len(said) < len(long)
        follows = await until(connection, "response.completed")
        assert follows.response.previous_response_id == active
        assert follows.response.output_text == "echo: stop" and follows.stream_id == "a"
        late = {"previous_response_id": active, "input": "too late"}
        await connection.response.steer(**late)
        failed = await until(connection, "response.steer.failed")
        assert failed.error.code == "response_not_active"


async def until(connection: Any, kind: str) -> Any:
    """The next event of that kind; errors are none."""
    while (event := await connection.recv()).type != kind:
        assert event.type not in ("error", "response.failed"), event
    return event
