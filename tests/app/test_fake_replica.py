"""The fake replica does as it is told, so that tests may lean on it."""

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator
from typing import Any

import httpx2
import pytest
from openai import AsyncOpenAI

from sessile.lab.fake_replica import FakeReplica, Fault, serve_fake
from sessile.relay import events

CHAT = "/v1/chat/completions"


@pytest.fixture
async def replica() -> AsyncIterator[FakeReplica]:
    async with serve_fake(context_tokens=2000) as replica:
        yield replica


@pytest.fixture
async def http(replica: FakeReplica) -> AsyncIterator[httpx2.AsyncClient]:
    async with httpx2.AsyncClient(base_url=replica.url, timeout=30) as http:
        yield http


def ask(*said: str, **fields: Any) -> dict[str, Any]:
    """A request whose user and assistant take turns."""
    roles = ("user", "assistant")
    messages = [{"role": roles[n % 2], "content": text} for n, text in enumerate(said)]
    return {"model": "fake", "messages": messages, **fields}


async def test_official_sdk_reads_it(replica: FakeReplica) -> None:
    """The OpenAI SDK lists the model, chats, streams, completes and embeds."""
    async with AsyncOpenAI(base_url=f"{replica.url}/v1", api_key="-") as client:
        assert [model.id async for model in client.models.list()] == ["fake"]
        whole = await client.chat.completions.create(**ask("hi there"))
        stream = await client.chat.completions.create(**ask("hi there"), stream=True)
        text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
        assert text == whole.choices[0].message.content == "echo: hi there"
        done = await client.completions.create(model="fake", prompt="say")
        assert done.choices[0].text == "echo: say"
        vectors = await client.embeddings.create(model="fake", input=["a", "b"])
        assert len(vectors.data) == 2 and vectors.data[0].embedding != vectors.data[1].embedding


async def test_second_turn_finds_the_first_in_the_cache(http: httpx2.AsyncClient) -> None:
    """A prompt that extends an earlier prompt and its reply has all of that cached."""
    first = (await http.post(CHAT, json=ask("a long story " * 20))).json()
    said = first["choices"][0]["message"]["content"]
    second = (await http.post(CHAT, json=ask("a long story " * 20, said, "go on"))).json()
    assert first["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
    cached = second["usage"]["prompt_tokens_details"]["cached_tokens"]
    assert first["usage"]["prompt_tokens"] < cached < second["usage"]["prompt_tokens"]


async def test_usage_is_streamed_only_when_asked_for(http: httpx2.AsyncClient) -> None:
    """The chunk with usage comes with include_usage and not without."""
    options = {"stream": True, "stream_options": {"include_usage": True}}
    with_usage = (await http.post(CHAT, json=ask("hi", **options))).content
    without = (await http.post(CHAT, json=ask("hi", stream=True))).content
    assert sum("usage" in event for event in events(with_usage)) == 1
    assert not any("usage" in event for event in events(without))
    assert without.endswith(b"data: [DONE]\n\n")


async def test_calls_the_function_that_the_user_names(http: httpx2.AsyncClient) -> None:
    """`call NAME {json}` with tools becomes a function call, whole and streamed."""
    request = ask('call weather {"city": "Oslo"}', tools=[{"type": "function"}])
    choice = (await http.post(CHAT, json=request)).json()["choices"][0]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["tool_calls"][0]["function"]["name"] == "weather"
    streamed = (await http.post(CHAT, json={**request, "stream": True})).content
    parts = [
        call["function"]["arguments"]
        for event in events(streamed)
        for call in event["choices"][0]["delta"].get("tool_calls", ())
    ]
    assert json.loads("".join(parts)) == {"city": "Oslo"}


@pytest.mark.parametrize("status", [400, 429, 500, 503])
async def test_fails_once_as_queued(
    replica: FakeReplica, http: httpx2.AsyncClient, status: int
) -> None:
    """A queued fault meets one request; the next is served."""
    replica.fail(Fault(status=status))
    refused = await http.post(CHAT, json=ask("hi"))
    assert refused.status_code == status and refused.json()["error"]["message"]
    assert (await http.post(CHAT, json=ask("hi"))).status_code == 200


async def test_a_prompt_beyond_the_context_is_refused(http: httpx2.AsyncClient) -> None:
    """It is a 400 whose code says so."""
    refused = await http.post(CHAT, json=ask("word " * 3000))
    assert refused.status_code == 400
    assert refused.json()["error"]["code"] == "context_length_exceeded"


@pytest.mark.parametrize("stream", [False, True])
async def test_drops_the_line_before_the_first_byte(
    replica: FakeReplica, http: httpx2.AsyncClient, stream: bool
) -> None:
    """The client is left without an answer, as when a replica dies."""
    replica.fail(Fault(drop_after=0))
    with pytest.raises(httpx2.TransportError):
        await http.post(CHAT, json=ask("hi", stream=stream))
    assert replica.seen[0].outcome == "dropped" and replica.running == 0


async def test_drops_the_line_after_two_events(
    replica: FakeReplica, http: httpx2.AsyncClient
) -> None:
    """Two events arrive, then the connection breaks."""
    replica.fail(Fault(drop_after=2, pause_s=0.02))
    got = b""
    with pytest.raises(httpx2.TransportError):
        async with http.stream("POST", CHAT, json=ask("one two three", stream=True)) as response:
            async for chunk in response.aiter_bytes():
                got += chunk
    assert len(list(events(got))) == 2


async def test_garbage_stands_between_whole_events(
    replica: FakeReplica, http: httpx2.AsyncClient
) -> None:
    """What is no JSON is in the stream, and the reply is too."""
    replica.always = Fault(garbage_after=1)
    body = (await http.post(CHAT, json=ask("hi", stream=True))).content
    assert b"{not json" in body and len(list(events(body))) == 3


async def test_sees_its_client_leave(replica: FakeReplica, http: httpx2.AsyncClient) -> None:
    """A client that gives up on a hanging or a slow answer is counted as aborted."""
    for fault in (Fault(hang=True), Fault(pause_s=60)):
        replica.fail(fault)
        asking = asyncio.create_task(http.post(CHAT, json=ask("hi", stream=True)))
        await replica.until(lambda r: r.running == 1)
        asking.cancel()
        await replica.until(lambda r: r.running == 0)
    assert replica.aborted == 2


async def test_remembers_what_it_was_asked(replica: FakeReplica, http: httpx2.AsyncClient) -> None:
    """Headers and body are there to be asserted on."""
    await http.post(CHAT, json=ask("hi", seed=7), headers={"X-Session-ID": "s"})
    seen = replica.seen[0]
    assert (seen.path, seen.headers["x-session-id"], seen.body["seed"]) == (CHAT, "s", 7)
    assert seen.outcome == "done"


def test_runs_as_a_process(unused_port: int) -> None:
    """Its faults are set and its memory is read over HTTP."""
    process = subprocess.Popen(
        [sys.executable, "-m", "sessile.lab.fake_replica", "--port", str(unused_port),
         "--always", '{"status": 503}'],
    )  # fmt: skip
    try:
        transport = httpx2.HTTPTransport(retries=8)
        url = f"http://127.0.0.1:{unused_port}"
        with httpx2.Client(base_url=url, transport=transport, timeout=30) as http:
            assert http.get("/health").status_code == 200
            assert http.post(CHAT, json=ask("hi")).status_code == 503
            http.post("/fake/faults", json={"next": [{"status": 429}], "always": {}})
            assert http.post(CHAT, json=ask("hi")).status_code == 429
            assert http.post(CHAT, json=ask("hi")).status_code == 200
            assert len(http.get("/fake/seen").json()["seen"]) == 3
    finally:
        process.terminate()
        process.wait(30)


@pytest.fixture
def unused_port() -> int:
    """A port that nobody listens on."""
    from sessile.engines.supervisor import free_ports

    return free_ports(1)[0]
