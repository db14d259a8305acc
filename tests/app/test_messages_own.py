"""Anthropic's Messages, passed through to an engine that speaks it, translated for one that does
not: the same result."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import anthropic
import httpx2
import pytest
from anthropic import AsyncAnthropic

from sessile.lab.fake_replica import Fault, serve_fake
from sessile.router.replica import ReplicaSpec

OWN, CHAT = "/v1/messages", "/v1/chat/completions"
TOOL: Any = {
    "name": "weather",
    "description": "The weather of a city.",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}},
}
SAID = "the rain in Spain  stays\nmainly in the plain"


class Site:
    """A router before one replica as SGLang of each `ways`, that speaks Messages or does not."""

    def __init__(self, router: Any, fakes: list[Any], faults: deque[Fault]) -> None:
        self.router, self.fakes, self.faults = router, fakes, faults
        self.client = AsyncAnthropic(base_url=router.url, api_key="none", max_retries=0)
        self.http = httpx2.AsyncClient(base_url=router.url)

    @property
    def asked(self) -> list[Any]:
        """All that the engines were asked."""
        return [seen for fake in self.fakes for seen in fake.seen]

    @property
    def paths(self) -> list[str]:
        """By which paths."""
        return [seen.path for seen in self.asked]

    async def made(self, stream: bool, **fields: Any) -> tuple[Any, Any]:
        """A message, streamed or not, and the headers it came with."""
        asked = {"model": "m", "max_tokens": 50, **fields}
        if not stream:
            raw = await self.client.messages.with_raw_response.create(**asked)
            return await raw.parse(), raw.headers
        async with self.client.messages.stream(**asked) as streamed:
            return await streamed.get_final_message(), streamed.response.headers

    async def receipt(self, headers: Any) -> dict[str, Any]:
        turn = headers["x-sessile-turn"]
        found: dict[str, Any] = (await self.http.get(f"/sessile/v1/turns/{turn}/receipt")).json()
        return found


@pytest.fixture
async def site(start: Any) -> AsyncIterator[Any]:
    """Makes sites; none leaves anything running."""
    async with AsyncExitStack() as stack:
        sites: list[Site] = []

        async def make(*ways: bool, **settings: Any) -> Site:
            router = await start(**settings)
            await router.app.pool.remove("one")
            faults: deque[Fault] = deque()
            fakes = []
            for number, messages in enumerate(ways):
                serving = serve_fake(model="m", faults=faults, messages=messages)
                fakes.append(await stack.enter_async_context(serving))
                spec = ReplicaSpec(id=f"r{number}", engine="sglang", url=fakes[-1].url)
                router.app.pool.add(spec)
            await router.until(lambda: len(router.app.pool.candidates("m")) == len(ways))
            made = Site(router, fakes, faults)
            await stack.enter_async_context(made.client)
            await stack.enter_async_context(made.http)
            sites.append(made)
            return made

        yield make
        for made in sites:
            await made.router.until(lambda made=made: not any(f.running for f in made.fakes))
            assert all(replica.in_flight == 0 for replica in made.router.app.pool)


def user(*texts: str) -> dict[str, Any]:
    return {"role": "user", "content": [{"type": "text", "text": text} for text in texts]}


@pytest.mark.parametrize("stream", [True, False])
async def test_both_ways_have_the_same_result(site: Any, stream: bool) -> None:
    """Text, a call, its result, what was counted and the session: told alike, asked differently."""
    results = []
    for own in (True, False):
        there = await site(own)
        told: list[Any] = []
        messages: list[Any] = [user("Be kind.", 'call weather {"city": "Zürich"}')]
        sessions = set()
        for _ in range(2):
            made, headers = await there.made(
                stream,
                messages=messages,
                tools=[TOOL],
                system=[*user("Rules.", "More.")["content"]],
            )
            sessions.add(headers["x-sessile-session"])
            receipt = await there.receipt(headers)
            told.append([block.to_dict() for block in made.content])
            told.append((made.stop_reason, made.usage.to_dict()))
            told.append([receipt[name] for name in ("outcome", "prompt_tokens", "cached_tokens",
                                                    "completion_tokens")])  # fmt: skip
            messages.append({"role": "assistant", "content": made.content})
            if made.stop_reason == "tool_use":
                (call,) = [block for block in made.content if block.type == "tool_use"]
                result = {"type": "tool_result", "tool_use_id": call.id, "content": "sunny"}
                messages.append({"role": "user", "content": [result]})
        assert len(sessions) == 1
        assert there.paths == [OWN if own else CHAT] * 2
        results.append(told)
    assert results[0] == results[1]
    assert results[0][1][0] == "tool_use" and results[0][5][2] > 0


async def test_the_engine_is_asked_what_the_client_asked(site: Any) -> None:
    """In its own words, but for texts side by side, and for what the router says of every turn."""
    there = await site(True)
    await there.made(
        False, messages=[user("a", "b")], system="Rules.", metadata={"user_id": "u"},
        extra_body={"top_k": 3},
    )  # fmt: skip
    (seen,) = there.asked
    assert seen.body == {
        "model": "m",
        "max_tokens": 50,
        "messages": [{"role": "user", "content": "a\nb"}],
        "system": "Rules.",
        "top_k": 3,
        "stream": True,
    }


async def test_a_conversation_goes_on_by_either_api(site: Any) -> None:
    """The chat that continues a message that was passed through is of its session, and finds its
    prompt in the cache."""
    there = await site(True, True)
    made, headers = await there.made(True, messages=[user(SAID)], system="Rules.")
    chat = [
        {"role": "system", "content": "Rules."},
        {"role": "user", "content": SAID},
        {"role": "assistant", "content": made.content[0].text},
        {"role": "user", "content": "Thanks."},
    ]
    answer = await there.http.post(CHAT, json={"model": "m", "messages": chat})
    assert answer.headers["x-sessile-session"] == headers["x-sessile-session"]
    assert answer.json()["usage"]["prompt_tokens_details"]["cached_tokens"] > 0
    assert sorted(there.paths) == [CHAT, OWN]


@pytest.mark.parametrize(
    "fields",
    [
        {"stop_sequences": ["END"]},
        {"seed": 7},
        {"messages": [user("Count."), {"role": "assistant", "content": "echo:"}]},
        {"messages": [user("a"), user("b")]},
    ],
)
async def test_what_an_engine_would_leave_aside_is_translated(site: Any, fields: Any) -> None:
    """SGLang does not tell which stop sequence was met, and reads no field beyond the API's."""
    there = await site(True)
    body = {"model": "m", "max_tokens": 9, "messages": [user("Hi")], **fields}
    assert (await there.http.post(OWN, json=body)).status_code == 200
    assert there.paths == [CHAT]


async def test_a_tenants_salt_is_never_left_out(site: Any) -> None:
    """SGLang takes it of a chat request only."""
    there = await site(True, auth={"api_keys": "a=one"})
    body = {"model": "m", "max_tokens": 9, "messages": [user("Hi")]}
    answer = await there.http.post(OWN, json=body, headers={"x-api-key": "one"})
    assert answer.status_code == 200
    (seen,) = there.asked
    assert seen.path == CHAT and seen.body["cache_salt"]


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("fault", [{"drop_after": 4}, {"error_after": 4}])
async def test_a_message_goes_on_at_another_replica(
    site: Any, fault: dict[str, Any], stream: bool
) -> None:
    """One message, in one block, no word lost or repeated, and the counts of the whole."""
    there = await site(True, True)
    there.faults.append(Fault(**fault))
    made, headers = await there.made(stream, messages=[user(SAID)])
    assert [block.text for block in made.content] == [f"echo: {SAID}"]
    assert (made.id, made.stop_reason) == (headers["x-sessile-turn"], "end_turn")
    assert made.usage.output_tokens == len(made.content[0].text.split(" "))
    assert sorted(there.paths) == [CHAT, OWN]
    receipt = await there.receipt(headers)
    assert (receipt["outcome"], receipt["continued"]) == ("ok", 1)


async def test_a_call_of_a_plain_message_is_begun_anew(site: Any) -> None:
    """Half of it was told to nobody, in whichever form the lost engine was asked."""
    there = await site(True, True)
    there.faults.append(Fault(drop_after=1))
    asked = [user('call weather {"city": "Zürich"}')]
    made, headers = await there.made(False, messages=asked, tools=[TOOL])
    assert [block.input for block in made.content] == [{"city": "Zürich"}]
    assert sorted(there.paths) == [CHAT, OWN]
    receipt = await there.receipt(headers)
    assert (receipt["outcome"], receipt["continued"]) == ("ok", 1)


@pytest.mark.parametrize("stream", [True, False])
async def test_a_refusal_has_the_words_of_the_engine(site: Any, stream: bool) -> None:
    """In Anthropic's shape, and in those of its chat, though it refuses a message in a stream."""
    there = await site(True)
    there.fakes[0].context_tokens = 3
    with pytest.raises(anthropic.BadRequestError) as caught:
        await there.made(stream, messages=[user(SAID)])
    assert caught.value.body["error"] == {
        "type": "invalid_request_error",
        "message": "This model's maximum context length is exceeded.",
    }
    assert there.paths == [OWN, CHAT]


async def test_a_replica_that_is_away_is_replaced_before_its_first_token(site: Any) -> None:
    """By one that does not speak Messages, if that is the other."""
    there = await site(True, False)
    there.faults.append(Fault(status=503))
    made, headers = await there.made(True, messages=[user("Hi")])
    assert made.content[0].text == "echo: Hi"
    assert (await there.receipt(headers))["attempts"] == 2


async def test_a_hang_up_stops_the_engine(site: Any) -> None:
    """Of a message that was passed through, too."""
    there = await site(True)
    there.faults.append(Fault(pause_s=0.05))
    messages = [user(" ".join(["word"] * 500))]
    async with there.client.messages.stream(model="m", max_tokens=500, messages=messages) as stream:
        async for _ in stream.text_stream:
            break
    await there.router.until(lambda: there.fakes[0].aborted == 1)
    assert there.paths == [OWN]


async def test_a_turn_without_its_client_ends_and_is_found_by_its_key(site: Any) -> None:
    """One that was passed through is kept as another is."""
    there = await site(True)
    there.faults.append(Fault(pause_s=0.1))
    body = {"model": "m", "max_tokens": 50, "messages": [user(SAID)]}
    key = {"Idempotency-Key": "k"}
    headers = {"X-Sessile-On-Disconnect": "detach", **key}
    asking = asyncio.create_task(there.http.post(OWN, json=body, headers=headers))
    await there.router.until(lambda: there.fakes[0].running == 1)
    asking.cancel()
    again = await there.http.post(OWN, json=body, headers=key)
    assert again.json()["content"][0]["text"] == f"echo: {SAID}"
    assert there.paths == [OWN]
    assert (await there.receipt(again.headers))["outcome"] == "ok"


async def test_a_session_keeps_its_replica(site: Any) -> None:
    """Its next turn, by its name, comes back to where it was, and finds its prompt there."""
    there = await site(True, True)
    places = set()
    for _ in range(2):
        _, headers = await there.made(
            False, messages=[user(SAID)], extra_headers={"X-Session-ID": "s"}
        )
        places.add(headers["x-sessile-replica"])
    assert len(places) == 1 and headers["x-sessile-session"] == "s"
    assert there.paths == [OWN, OWN] and there.asked[1].cached_tokens > 0
