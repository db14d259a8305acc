"""A replica that dies before it has said anything: another takes the turn, whatever was asked."""

from typing import Any

import httpx2
import pytest

from faulty_pair import faulty_pair
from scripted_engine import STOP
from sessile.lab.fake_replica import Fault
from sessile.relay import events

SAID = "the rain in Spain stays"
CALL = 'call f {"a": 1}'
SCHEMA = {"type": "object", "properties": {"a": {"type": "string"}}}
FUNCTION = {"name": "f", "parameters": {"type": "object"}}
FORM = {"type": "json_schema", "name": "x", "schema": SCHEMA}

CHATS = {
    "constrained": {
        "messages": [{"role": "user", "content": SAID}],
        "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}},
    },
    "logprobs": {"messages": [{"role": "user", "content": SAID}], "logprobs": True},
    "a call": {
        "messages": [{"role": "user", "content": CALL}],
        "tools": [{"type": "function", "function": FUNCTION}],
    },
}
"""What is never gone on with: once something was sent, the turn would fail."""

RESPONSES = {
    "constrained": {"input": SAID, "text": {"format": FORM}},
    "a call": {"input": CALL, "tools": [{"type": "function", "strict": False, **FUNCTION}]},
}


MESSAGE = {
    "messages": [{"role": "user", "content": SAID}], "max_tokens": 9, "stream": True,
    "output_config": {"format": {"type": "json_schema", "schema": SCHEMA}},
}  # fmt: skip
ROLE = {"choices": [{"index": 0, "finish_reason": None, "delta": {"role": "assistant"}}]}
SESSION = {"x-session-id": "s"}


async def lost_at_home(pair: Any, router: Any, http: httpx2.AsyncClient) -> Any:
    """A session's first turn, whose replica then dies of each request; the other replica."""
    first = await router.turn(http, "s")
    return pair.loses(first.headers["x-sessile-replica"], Fault(drop_after=0))


async def receipt_of(router: Any, http: httpx2.AsyncClient, reply: httpx2.Response) -> Any:
    turn = reply.headers["x-sessile-turn"]
    return (await http.get(f"{router.url}/sessile/v1/turns/{turn}/receipt")).json()


@pytest.mark.parametrize("kind", CHATS)
@pytest.mark.parametrize("stream", [True, False])
async def test_a_chat_of_which_nothing_was_sent(
    router: Any, http: httpx2.AsyncClient, kind: str, stream: bool
) -> None:
    """The answer is the other's alone, and the session stays there."""
    body = {"model": "m", "stream": stream, **CHATS[kind]}
    async with faulty_pair(router) as pair:
        other = await lost_at_home(pair, router, http)
        url = f"{router.url}/v1/chat/completions"
        reply = await http.post(url, json=body, headers=SESSION)
        again = await http.post(url, json=body, headers=SESSION)
        assert reply.status_code == 200 and len(other.seen) == 2
        assert choices_of(reply) == choices_of(again)
        receipt = await receipt_of(router, http, reply)
        assert (receipt["outcome"], receipt["attempts"]) == ("ok", 2)
        assert again.headers["x-sessile-replica"] == receipt["replica"]


def choices_of(reply: httpx2.Response) -> list[Any]:
    """All that was told, chunk by chunk."""
    if "event-stream" not in reply.headers["content-type"]:
        return [reply.json()["choices"]]
    assert reply.text.endswith("data: [DONE]\n\n")
    return [chunk["choices"] for chunk in events(reply.content)]


@pytest.mark.parametrize("kind", RESPONSES)
@pytest.mark.parametrize("stream", [True, False])
async def test_a_response_of_which_nothing_was_sent(
    router: Any, http: httpx2.AsyncClient, kind: str, stream: bool
) -> None:
    """It is completed by the other, with one item."""
    body = {"model": "m", "stream": stream, **RESPONSES[kind]}
    async with faulty_pair(router) as pair:
        other = await lost_at_home(pair, router, http)
        reply = await http.post(f"{router.url}/v1/responses", json=body, headers=SESSION)
        assert reply.status_code == 200 and len(other.seen) == 1
        told = list(events(reply.content)) if stream else []
        added = [e["item"]["id"] for e in told if e["type"] == "response.output_item.added"]
        made = told[-1]["response"] if stream else reply.json()
        assert made["status"] == "completed"
        (item,) = made["output"]
        said = item["arguments"] if kind == "a call" else item["content"][0]["text"]
        assert said == ('{"a": 1}' if kind == "a call" else f"echo: {SAID}")
        assert added == ([item["id"]] if stream else [])


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("chat/completions", {**CHATS["constrained"], "stream": True}),
        ("responses", {**RESPONSES["constrained"], "stream": True}),
        ("responses", RESPONSES["constrained"]),
        ("messages", MESSAGE),
    ],
)
async def test_an_answer_of_which_only_the_role_was_told(
    start: Any, http: httpx2.AsyncClient, path: str, fields: Any
) -> None:
    """Engines begin a stream with it: the answer is begun again elsewhere, and told once."""
    router = await start(engines=2)
    home = (await router.turn(http, "s")).headers["x-sessile-replica"]
    router.engines[home].plays(ROLE, router.cut)
    router.engines["two" if home == "one" else "one"].plays(ROLE, "Hel", "lo", STOP)
    url = f"{router.url}/v1/{path}"
    reply = await http.post(url, json={"model": "m", **fields}, headers=SESSION)
    assert reply.status_code == 200 and "error" not in reply.text.replace('"error":null', "")
    pieces = ('"Hel"', '"lo"') if fields.get("stream") else ('"Hello"',)
    assert [reply.text.count(piece) for piece in pieces] == [1] * len(pieces)
    receipt = await receipt_of(router, http, reply)
    assert receipt["outcome"] == "ok"
    assert receipt["replicas"] == [home, receipt["replica"]] and receipt["replica"] != home
