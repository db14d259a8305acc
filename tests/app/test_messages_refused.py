"""What the Messages API refuses: in Anthropic's shape, so that its client raises as it should."""

from typing import Any

import anthropic
import httpx2
import pytest
from anthropic import AsyncAnthropic

from messages_asked import BODY


@pytest.mark.parametrize("stream", [True, False])
async def test_an_engines_refusal_keeps_its_words(router, claude, stream):
    """With a status, streaming or not."""
    router.engine.refuses(400, "maximum context length is 10")
    with pytest.raises(anthropic.BadRequestError) as caught:
        await claude.messages.create(**BODY, stream=stream)
    assert caught.value.body["error"] == {
        "type": "invalid_request_error",
        "message": "maximum context length is 10",
    }
    assert caught.value.request_id == caught.value.body["request_id"]


@pytest.mark.parametrize(
    ("content", "status", "kind"),
    [
        (b"{", 400, "invalid_request_error"),
        (b"[]", 400, "invalid_request_error"),
        (b'{"model": "m", "messages": [{"role": "user", "content": "x"}]}', 400, None),
        (b'{"model": "m", "max_tokens": 1, "messages": [1]}', 400, None),
        (b'{"model":"m","max_tokens":1,"messages":[{"role":"user","content":[1]}]}', 400, None),
        (
            b'{"model": "m", "max_tokens": 1, "system": [{"type":"text","text":"x","content":[1]}],'
            b'"messages": [{"role":"user","content":[{"type":"text","text":"x","content":[1]}]}]}',
            200,
            None,
        ),
        (b'{"model": "nope", "max_tokens": 1, "messages": [{"role": "user", "content": "x"}]}', 404,
         "not_found_error"),
    ],
)  # fmt: skip
async def test_bad_requests_are_told_in_anthropics_shape(router, http, content, status, kind):
    """Each gets one sentence, and the next request is served."""
    answer = await http.post(f"{router.url}/v1/messages", content=content)
    assert answer.status_code == status
    if status != 200:
        told = answer.json()
        assert told["type"] == "error" and told["error"]["message"]
        assert told["error"]["type"] == (kind or "invalid_request_error")
        assert told["request_id"] == answer.headers["request-id"]
    assert (await http.post(f"{router.url}/v1/messages", json=BODY)).status_code == 200


async def test_a_thread_is_refused_in_the_words_that_its_client_knows(router, claude, http):
    """Nothing is held for it, and the client goes on with whole conversations."""
    body = {**BODY, "thread": {"type": "create"}}
    answer = await http.post(f"{router.url}/v1/messages", json=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["details"] == {"error_code": "thread_unsupported_request"}
    with pytest.raises(anthropic.BadRequestError) as caught:
        await claude.messages.create(**BODY, extra_body={"thread": {"type": "create"}})
    assert caught.value.error_code == "thread_unsupported_request"


async def test_what_is_not_there(router, claude, http):
    """A path of theirs that is none, and a method of one that has others."""
    with pytest.raises(anthropic.NotFoundError, match="/v1/messages/nothing"):
        await claude.post("/v1/messages/nothing", cast_to=object)
    answer = await http.get(f"{router.url}/v1/messages")
    assert answer.status_code == 404 and answer.json()["type"] == "error"


@pytest.mark.parametrize("header", ["x-api-key", "authorization"])
async def test_keys(start, header):
    """Either header lets in, and names the tenant; without one, or with a wrong one, a 401."""
    router = await start(auth={"api_keys": "a=one,b=two"})

    def client(key: str) -> AsyncAnthropic:
        given: Any = {"api_key": key} if header == "x-api-key" else {"auth_token": key}
        return AsyncAnthropic(base_url=router.url, max_retries=0, **given)

    sessions = set()
    for key in ("one", "two"):
        async with client(key) as known:
            raw = await known.messages.with_raw_response.create(
                **BODY, extra_headers={"X-Session-ID": "s"}
            )
            turn = raw.headers["x-sessile-turn"]
            sessions.add((key, raw.headers["x-sessile-reason"]))
            async with httpx2.AsyncClient(base_url=router.url) as http:
                for other in ("one", "two"):
                    found = await http.get(
                        f"/sessile/v1/turns/{turn}/receipt",
                        headers={"Authorization": f"Bearer {other}"},
                    )
                    assert found.status_code == (200 if other == key else 404)
    assert {reason for _, reason in sessions} == {"new"}
    async with client("wrong") as stranger:
        with pytest.raises(anthropic.AuthenticationError):
            await stranger.messages.create(**BODY)
    async with httpx2.AsyncClient(base_url=router.url) as http:
        answer = await http.post("/v1/messages", json=BODY)
        assert answer.status_code == 401
        assert answer.json()["error"]["type"] == "authentication_error"


async def test_batches_are_refused_by_name(claude, start):
    """In Anthropic's shape, to who may ask: made, listed, looked at, cancelled, deleted."""
    batches = claude.messages.batches
    request: Any = {"custom_id": "a", "params": BODY}
    for asking in (
        batches.create(requests=[request]), batches.list(), batches.retrieve("b"),
        batches.cancel("b"), batches.delete("b"), batches.results("b"),
    ):  # fmt: skip
        with pytest.raises(anthropic.APIStatusError) as caught:
            await asking
        assert caught.value.status_code == 501 and isinstance(caught.value.body, dict)
        assert "batches are not supported" in caught.value.body["error"]["message"]
        assert caught.value.request_id == caught.value.body["request_id"]
    closed = await start(auth={"api_keys": "a=one"})
    async with AsyncAnthropic(base_url=closed.url, api_key="none", max_retries=0) as stranger:
        with pytest.raises(anthropic.AuthenticationError):
            await stranger.messages.batches.list()
