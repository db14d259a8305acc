"""What a client says of the cache: prewarming, leases, breakpoints, and two prompts compared."""

import asyncio
import time
from typing import Any

import openai
import pytest
from websockets.asyncio.client import connect

from lane_lines import LAST, TOOL, Lines
from scripted_engine import STOP
from sessile.lab.fake_replica import FakeReplica


@pytest.mark.parametrize("how", [{"generate": False}, {"prompt_cache_options": {"prewarm": True}}])
async def test_prewarming_prefills_and_can_be_followed(router, lines, how):
    """The engine is given the prompt for one token, the client no output; the next turn's prompt
    begins with what was prefilled."""
    router.engine.says("x", finish="length")
    await lines.ask(input="Long.", max_output_tokens=50, **how)
    types = [(await lines.next(*LAST, "response.output_item.added", "response.in_progress"))]
    types.append(await lines.next(*LAST, "response.output_item.added"))
    assert types[-1]["type"] == "response.completed"
    warm = types[-1]["response"]
    assert warm["output"] == [] and warm["usage"]["output_tokens"] == 0
    assert warm["usage"]["input_tokens"] == 1
    assert router.engine.asked[0]["max_tokens"] == 1
    last = await lines.turn(previous_response_id=warm["id"], input="Go.")
    assert last["response"]["output"]
    said = [message["content"] for message in router.engine.asked[1]["messages"]]
    assert said == ["Long.", "Go."] and "max_tokens" not in router.engine.asked[1]


async def test_prewarming_is_for_http_too(router, client):
    """By `prewarm`, which the API has there; `generate` belongs to the WebSocket."""
    warm = await client.responses.create(
        model="m", input="Long.", prompt_cache_options={"prewarm": True}
    )
    assert warm.status == "completed" and warm.output == []
    said = await client.responses.create(model="m", input="Go.", previous_response_id=warm.id)
    assert said.output_text == "2"
    with pytest.raises(openai.BadRequestError) as caught:
        await client.responses.create(model="m", input="Go.", extra_body={"generate": False})
    assert caught.value.param == "generate"


async def test_prewarming_stands_in_no_turns_way(router, lines):
    """It runs beside a turn of its session, is no fork, and comes behind all in the queue."""
    head = (await lines.turn("a"))["response"]["id"]
    gate = asyncio.Event()
    router.engine.plays("go", gate, STOP)
    await lines.ask("a", previous_response_id=head, input="on")
    await router.until(lambda: router.engine.running == 1)
    warm = await lines.turn("b", previous_response_id=head, input="next", generate=False)
    assert warm["type"] == "response.completed"
    gate.set()
    turn = await lines.next(*LAST, lane="a")
    sessions = [
        (await router.app.store.get_turn("default", response)).session
        for response in (head, warm["response"]["id"], turn["response"]["id"])
    ]
    assert len(set(sessions)) == 1


@pytest.mark.parametrize("over", ["http", "websocket"])
async def test_a_ttl_leases_the_sessions_memory(router, client, lines, over):
    """Held for so long after the turn; the response says what was applied."""
    options: Any = {"ttl": "12h", "mode": "implicit"}
    if over == "http":
        made = await client.responses.create(
            model="m", input="Hi", prompt_cache_options=options,
            extra_headers={"X-Session-ID": "held"},
        )  # fmt: skip
        told = made.prompt_cache_options.model_dump(exclude_unset=True)
    else:
        last = await lines.turn(session_id="held", prompt_cache_options=options)
        told = last["response"]["prompt_cache_options"]
    assert told == options
    pauses = router.app.flow.scheduler.live.pauses._pauses
    (pause,) = (pause for session, pause in pauses.items() if "held" in session)
    assert pause.told and pause.until - time.monotonic() == pytest.approx(43_200, abs=60)


async def test_a_comparison_tells_where_prompts_part(router, client, lines):
    """The next turn goes on from it, an edited one does not, and nobody knows a foreign one."""
    long = "word " * 500
    first = (await lines.turn(instructions="Be brief.", input=long))["response"]["id"]

    async def compared(**fields: Any) -> Any:
        options = {"comparison_response_id": first}
        last = await lines.turn(prompt_cache_options=options, **fields)
        return last["response"]["prompt_cache_diagnostics"]

    follows = {"previous_response_id": first, "input": "and"}
    goes_on = await compared(instructions="Be brief.", **follows)
    assert goes_on["sessile"]["message"] is None
    other = await compared(instructions="Be long.", **follows)
    assert (other["type"], other["reason"]) == ("cache_miss", "input_changed")
    assert other["sessile"]["message"] == 0 and other["sessile"]["character"] == len("Be ")
    tools = await compared(instructions="Be brief.", tools=[TOOL], **follows)
    assert tools["reason"] == "tools_changed"
    made = await client.responses.create(
        model="m", input="x", prompt_cache_options={"comparison_response_id": "resp_other"}
    )
    assert made.prompt_cache_diagnostics.type == "comparison_response_not_found"


async def test_a_comparison_tells_of_lost_memory(start):
    """A prompt that goes on from the other one, at an engine that has forgotten it, and that has
    not."""
    replica = FakeReplica(model="m")
    router = await start([replica])
    async with connect(router.ws_url) as ws:
        lines = Lines(ws)
        first = (await lines.turn(input="word " * 500))["response"]["id"]
        options = {"comparison_response_id": first}
        follows = {"previous_response_id": first, "prompt_cache_options": options}
        for lost, kind, why in ((False, "cache_hit", None), (True, "unavailable", "evicted")):
            if lost:
                replica.forget()
            told = (await lines.turn(**follows))["response"]["prompt_cache_diagnostics"]
            assert (told["type"], told["sessile"]["why"]) == (kind, why)
            assert told["sessile"]["replica"] == told["sessile"]["comparison_replica"] == "one"


async def test_a_breakpoint_asks_for_nothing_more(router, lines):
    """All prefixes are cached: explicit ones are taken, and the engine sees nothing of them."""
    part = {"type": "input_text", "text": "Hi", "prompt_cache_breakpoint": {"mode": "explicit"}}
    last = await lines.turn(
        input=[{"role": "user", "content": [part]}], prompt_cache_options={"mode": "explicit"}
    )
    assert last["type"] == "response.completed"
    assert router.engine.asked[0]["messages"] == [{"role": "user", "content": "Hi"}]
