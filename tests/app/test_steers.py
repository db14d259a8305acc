"""Steers of responses that run, before an engine that plays a script."""

import asyncio

from websockets.asyncio.client import connect

from lane_lines import LAST, TOOL, Lines
from scripted_engine import STOP


async def test_a_steer_stops_the_response_and_another_follows(router, lines):
    """What was said so far is the assistant's, the steer the user's next words, and the settings
    are the same; nobody asks for the successor."""
    gate = asyncio.Event()
    router.engine.plays("Hel", gate, "lo", asyncio.Event())
    await lines.ask("a", input="Talk.", instructions="Be brief.", max_output_tokens=9)
    first = (await lines.next("response.output_text.delta", lane="a"))["item_id"]
    created = "resp_" + first.removeprefix("msg_")[:-2]
    accepted = await lines.steer(created)
    assert accepted["type"] == "response.steer.accepted" and accepted["stream_id"] == "a"
    gate.set()
    ended = (await lines.next(*LAST, lane="a"))["response"]
    assert ended["status"] == "incomplete" and ended["incomplete_details"]["reason"] == "steered"
    assert ended["output"][0]["content"][0]["text"] == "Hello"
    follows = (await lines.next("response.created", lane="a"))["response"]
    assert follows["previous_response_id"] == ended["id"] == created
    assert (follows["instructions"], follows["max_output_tokens"]) == ("Be brief.", 9)
    assert (await lines.next(*LAST, lane="a"))["type"] == "response.completed"
    await router.until(lambda: router.engine.aborted == 1)
    said = [(m["role"], m["content"]) for m in router.engine.asked[1]["messages"]]
    assert said == [
        ("system", "Be brief."), ("user", "Talk."), ("assistant", "Hello"), ("user", "Stop."),
    ]  # fmt: skip


async def test_a_steer_is_followed_before_what_waits(router, lines):
    """The successor comes by itself, and the request behind it after it."""
    gate = asyncio.Event()
    router.engine.plays("Hel", gate, "lo", asyncio.Event())
    await lines.ask(input="first")
    created = (await lines.next("response.created"))["response"]["id"]
    await lines.ask(input="second")
    await lines.steer(created)
    gate.set()
    for _ in range(3):
        await lines.next(*LAST)
    assert [r["messages"][-1]["content"] for r in router.engine.asked] == [
        "first", "Stop.", "second",
    ]  # fmt: skip


async def test_a_steer_that_comes_at_the_very_end_is_not_lost(router, lines):
    """The response completes, and its successor follows all the same."""
    gate = asyncio.Event()
    router.engine.plays("Hello", gate, STOP)
    await lines.ask(store=False)
    created = (await lines.next("response.created"))["response"]["id"]
    await lines.steer(created)
    gate.set()
    assert (await lines.next(*LAST))["type"] == "response.completed"
    follows = (await lines.next(*LAST))["response"]
    assert follows["previous_response_id"] == created and follows["status"] == "completed"


async def test_a_steer_waits_for_the_clients_tools(router, lines):
    """Within a call nothing is stopped; the steer goes with the outputs, behind them, and a first
    try that was wrong costs it nothing."""
    gate = asyncio.Event()
    router.engine.calls("add", '{"a":1}')
    router.engine._scripts[-1].insert(1, gate)
    await lines.ask(tools=[TOOL])
    created = (await lines.next("response.created"))["response"]["id"]
    await lines.next("response.output_item.added")
    accepted = await lines.steer(created)
    gate.set()
    assert (await lines.next(*LAST))["type"] == "response.completed"
    pending = await lines.next("response.steer.pending")
    assert pending["steer"] == accepted["steer"]
    assert pending["required_input"] == [
        {"type": "function_call_output", "call_id": "call_1", "name": "add"}
    ]
    wrong = [{**pending["required_input"][0], "call_id": "call_2", "output": "1"}]
    error = await lines.turn(previous_response_id=created, input=wrong, tools=[TOOL])
    assert error["type"] == "error"
    outputs = [{**pending["required_input"][0], "output": "1"}]
    last = await lines.turn(previous_response_id=created, input=outputs, tools=[TOOL])
    assert last["type"] == "response.completed"
    said = [(m["role"], m["content"]) for m in router.engine.asked[-1]["messages"]]
    assert said[-2:] == [("tool", "1"), ("user", "Stop.")]


async def test_a_steer_of_somebody_else_or_too_late_fails(router, lines):
    """Unknown here, over, or not a steer at all: each with its code, and nothing is harmed."""
    done = (await lines.turn("a"))["response"]["id"]
    assert (await lines.steer(done))["error"]["code"] == "response_already_completed"
    async with connect(router.ws_url) as ws:
        failed = await Lines(ws).steer(done)
        assert failed["error"]["code"] == "response_not_found"
        assert failed["steer"] == {"previous_response_id": done, "input": "Stop."}
    router.engine.plays("Hel", router.cut)
    broken = await lines.turn("a")
    assert broken["type"] == "response.failed"
    late = await lines.steer(broken["response"]["id"])
    assert late["error"]["code"] == "response_not_active"
    empty = await lines.steer(done, [])
    assert empty["error"]["code"] == "invalid_input" and empty["steer"]["input"] == []
    assert (await lines.turn("a"))["type"] == "response.completed"


async def test_a_running_response_of_another_tenant_is_unknown(start, http):
    """To who steers or stops it by its id over HTTP: it is told what it would be of one that never
    was, and the turn runs on unharmed. Its own tenant may."""
    router = await start(auth={"api_keys": "a=one,b=two"})
    mine, other = ({"Authorization": f"Bearer {key}"} for key in ("one", "two"))
    gate = asyncio.Event()
    router.engine.plays("Hel", gate, "lo", asyncio.Event())
    router.engine.says("Stopped.")
    body = {"model": "m", "input": "Talk.", "background": True}
    made = (await http.post(f"{router.url}/v1/responses", json=body, headers=mine)).json()["id"]
    await router.until(lambda: router.engine.running == 1)
    turns = f"{router.url}/sessile/v1/turns"

    async def steer(response, headers, words="Mine now."):
        told = await http.post(f"{turns}/{response}/steer", json={"input": words}, headers=headers)
        event = told.json()
        return told.status_code, event["type"], (event.get("error") or {}).get("code")

    unknown = (200, "response.steer.failed", "response_not_found")
    assert await steer(made, other) == await steer("resp_none", other) == unknown
    assert (await http.post(f"{turns}/{made}/steer", json={"input": "x"})).status_code == 401
    assert (await http.post(f"{turns}/{made}/cancel", headers=other)).status_code == 404
    assert router.engine.running == 1 and len(router.engine.asked) == 1
    assert await steer(made, mine, "Stop.") == (200, "response.steer.accepted", None)
    gate.set()
    await router.until(lambda: len(router.engine.asked) == 2)
    assert [m["content"] for m in router.engine.asked[1]["messages"]] == ["Talk.", "Hello", "Stop."]


async def test_a_successor_that_cannot_be_made_gives_the_steer_back(router, lines):
    """With the engine's reason; the lane serves the next request."""
    gate = asyncio.Event()
    router.engine.plays("Hel", gate, "lo", asyncio.Event())
    router.engine.refuses(400, "the model is tired")
    await lines.ask("a")
    created = (await lines.next("response.created", lane="a"))["response"]["id"]
    accepted = await lines.steer(created)
    gate.set()
    assert (await lines.next(*LAST, lane="a"))["type"] == "response.incomplete"
    failed = await lines.next("response.steer.failed", lane="a")
    assert failed["error"]["code"] == "successor_creation_failed"
    assert "tired" in failed["error"]["message"]
    assert failed["steer"] == {**accepted["steer"], "input": "Stop."}
    assert (await lines.turn("a"))["type"] == "response.completed"


async def test_a_broken_response_gives_its_steers_back(router, lines):
    """Nothing can follow what failed."""
    gate = asyncio.Event()
    router.engine.plays("Hel", gate, router.cut)
    await lines.ask()
    created = (await lines.next("response.created"))["response"]["id"]
    await lines.steer(created)
    gate.set()
    assert (await lines.next(*LAST))["type"] == "response.failed"
    failed = await lines.next("response.steer.failed")
    assert failed["error"]["code"] == "response_not_active"


async def test_a_steered_session_keeps_its_place(router, lines):
    """It pauses like one whose turn ended well: its memory is held, and its binding stands."""
    gate = asyncio.Event()
    router.engine.plays("Hel", gate, "lo", asyncio.Event())
    await lines.ask(session_id="s")
    created = (await lines.next("response.created"))["response"]["id"]
    await lines.steer(created)
    gate.set()
    for _ in range(2):
        ended = (await lines.next(*LAST))["response"]
    receipts = [
        (await router.app.store.get_turn("default", turn)).receipt
        for turn in (created, ended["id"])
    ]
    assert [r.outcome for r in receipts] == ["steered", "ok"]
    assert receipts[1].reason == "bound"
    assert router.app.pool.get("one").outlook.paused
