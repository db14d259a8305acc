"""A message that is cut short, by its replica or by its client."""

import asyncio

import anthropic
import pytest

from messages_asked import BODY
from scripted_engine import STOP


async def test_a_broken_stream_ends_with_an_error(router, claude, http):
    """A replica that dies on the way: what came stays, and the client is told."""
    router.engine.plays("Hel", router.cut)
    said = ""
    with pytest.raises(anthropic.APIStatusError) as caught:
        async for event in await claude.messages.create(**BODY, stream=True):
            if event.type == "content_block_delta":
                said += event.delta.text
    assert said == "Hel" and caught.value.body["error"]["type"] == "api_error"
    receipt = await http.get(
        f"{router.url}/sessile/v1/turns/{caught.value.body['request_id']}/receipt"
    )
    assert receipt.json()["outcome"] == "stream_broken"


@pytest.mark.parametrize("steps", [("Hel",), ("Hel", {"error": {"message": "no memory"}})])
async def test_a_broken_answer_is_an_error_to_who_waited_for_it(router, claude, steps):
    """Without a stream, one that is not whole is a 502."""
    router.engine.plays(*steps)
    with pytest.raises(anthropic.InternalServerError) as caught:
        await claude.messages.create(**BODY)
    assert caught.value.status_code == 502


@pytest.mark.parametrize("path", ["/v1/messages", "/v1/messages/count_tokens"])
@pytest.mark.parametrize("stream", [True, False])
async def test_a_hang_up_stops_the_engine(router, http, path, stream):
    """A client that goes away stops the engine's work, whatever it is for."""
    router.engine.plays("Hel", asyncio.Event())
    asking = asyncio.create_task(http.post(f"{router.url}{path}", json={**BODY, "stream": stream}))
    await router.until(lambda: router.engine.running == 1)
    asking.cancel()
    await router.until(lambda: router.engine.aborted == 1 and router.engine.running == 0)


@pytest.mark.parametrize("stream", [True, False])
async def test_a_turn_goes_on_without_a_client_that_has_said_so(router, http, stream):
    """With `detach` the message is made to its end, and found by its key."""
    go = asyncio.Event()
    router.engine.plays("Hel", go, "lo", STOP)
    body, key = {**BODY, "stream": stream}, {"Idempotency-Key": "k"}
    url, headers = f"{router.url}/v1/messages", {"X-Sessile-On-Disconnect": "detach", **key}
    asking = asyncio.create_task(http.post(url, json=body, headers=headers))
    await router.until(lambda: router.engine.running == 1)
    asking.cancel()
    await asyncio.sleep(0.2)  # longer than a hang-up takes to be seen
    assert router.engine.running == 1
    go.set()
    again = await http.post(url, json={**BODY, "stream": False}, headers=key)
    assert again.json()["content"][0]["text"] == "Hello" and len(router.engine.asked) == 1
    receipt = (await http.get(f"{router.url}/sessile/v1/turns/{again.json()['id']}/receipt")).json()
    assert receipt["outcome"] == "ok"


@pytest.mark.parametrize("path", ["/v1/messages", "/v1/messages/count_tokens"])
async def test_a_wish_about_hanging_up_that_is_none_is_refused(router, http, path):
    """Before anything runs, in Anthropic's shape."""
    headers = {"X-Sessile-On-Disconnect": "keep"}
    answer = await http.post(f"{router.url}{path}", json=BODY, headers=headers)
    assert answer.status_code == 400 and answer.json()["type"] == "error"
    assert "detach or abort" in answer.json()["error"]["message"]
    assert router.engine.asked == []
