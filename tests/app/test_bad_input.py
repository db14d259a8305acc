"""What cannot be done, asked for over HTTP and over the WebSocket: the same clear error, and the
next request is served."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx2
import pytest
from starlette.types import Receive, Scope, Send
from websockets.asyncio.client import connect

from lane_lines import LAST, TOOL
from scripted_engine import STOP
from sessile.lab.fake_replica import FakeReplica

KEYS = {"api_keys": "a=one,b=two"}

pytestmark = pytest.mark.parametrize("way", ["http", "websocket"])


@pytest.fixture
async def http() -> AsyncIterator[httpx2.AsyncClient]:
    async with httpx2.AsyncClient(timeout=60, trust_env=False) as http:
        yield http


class Asking:
    """One client of a router, which asks one way; `ask` gives the response, or the error that is
    told instead, with its status."""

    def __init__(self, http: httpx2.AsyncClient, router: Any, way: str, key: str = "none") -> None:
        self._http = http
        self._router = router
        self._way = way
        self._headers = {"Authorization": f"Bearer {key}"}

    async def ask(self, given: Any = "Hi", **fields: Any) -> dict[str, Any]:
        body = {"model": "m", "input": given, **fields}
        if self._way == "http":
            url = f"{self._router.url}/v1/responses"
            answer = await self._http.post(url, json=body, headers=self._headers)
            found: dict[str, Any] = answer.json()
            if answer.status_code != 200:
                found = {"status": answer.status_code, **found["error"]}
            return found
        async with connect(
            self._router.ws_url, additional_headers=self._headers, max_size=None
        ) as ws:
            await ws.send(json.dumps({"type": "response.create", **body}))
            while (event := json.loads(await ws.recv()))["type"] not in LAST:
                pass
            last: dict[str, Any] = event
            if last["type"] == "error":
                return {"status": last["status"], **last["error"]}
            response: dict[str, Any] = last["response"]
            return response

    async def get(self, path: str) -> int:
        answer = await self._http.get(self._router.url + path, headers=self._headers)
        return answer.status_code


async def test_a_response_that_is_not_ones_own_cannot_be_followed(start, http, way):
    """One of another tenant is as unknown as one that never was, whether it runs or has ended."""
    router = await start(auth=KEYS)
    mine, other = (Asking(http, router, way, key) for key in ("one", "two"))
    done = (await mine.ask())["id"]
    told = []
    for previous in (done, "resp_none", "resp_" + "0" * 32):
        refused = await other.ask(previous_response_id=previous)
        assert previous in refused.pop("message")
        told.append(refused)
    assert told[0] == told[1] == told[2]
    assert told[0]["status"] == 404 and told[0]["param"] == "previous_response_id"
    assert len(router.engine.asked) == 1
    for path in (f"/v1/responses/{done}", f"/v1/responses/{done}/input_items"):
        assert [await client.get(path) for client in (mine, other)] == [200, 404]
    assert (await mine.ask(previous_response_id=done))["status"] == "completed"


@pytest.mark.parametrize("previous", [7, [], {"id": "resp_1"}])
async def test_what_cannot_name_a_response_is_refused(router, http, way, previous):
    """By the field's name, before an engine is asked."""
    asking = Asking(http, router, way)
    refused = await asking.ask(previous_response_id=previous)
    assert (refused["status"], refused["param"]) == (400, "previous_response_id")
    assert router.engine.asked == []


async def test_results_that_answer_no_call_are_refused(router, http, way):
    """Of calls that were never made, of one that was answered before, and two of one call."""
    asking = Asking(http, router, way)
    router.engine.calls("add", "{}")
    made = await asking.ask(tools=[TOOL])
    (call,) = made["output"]
    mine = {"type": "function_call_output", "call_id": call["call_id"], "output": "3"}
    other = {**mine, "call_id": "call_never"}
    for given, param in (([other], "input[0].call_id"), ([mine, mine], "input[1].call_id")):
        refused = await asking.ask(given, tools=[TOOL], previous_response_id=made["id"])
        assert (refused["status"], refused["param"]) == (400, param) and refused["message"]
    done = await asking.ask([mine], tools=[TOOL], previous_response_id=made["id"])
    assert done["status"] == "completed"
    refused = await asking.ask([mine], tools=[TOOL], previous_response_id=done["id"])
    assert (refused["status"], refused["param"]) == (400, "input[0].call_id")
    assert len(router.engine.asked) == 2


async def test_ten_thousand_items_are_one_turn(router, http, way):
    """They are served, and a conversation that holds them takes no more."""
    asking = Asking(http, router, way)
    given = [{"role": "user", "content": str(n)} for n in range(10_000)]
    assert (await asking.ask(given))["status"] == "completed"
    assert len(router.engine.asked[0]["messages"]) == 10_000
    made = (await http.post(f"{router.url}/v1/conversations", json={})).json()["id"]
    refused = await asking.ask([*given, given[0]], conversation=made)
    assert (refused["status"], refused["param"]) == (400, "conversation")
    assert (await asking.ask(conversation=made))["status"] == "completed"


async def test_a_conversation_that_goes_while_a_turn_runs(router, http, way):
    """The turn is answered and stored; the next one is told that there is no such conversation."""
    asking = Asking(http, router, way)
    conversation = (await http.post(f"{router.url}/v1/conversations", json={})).json()["id"]
    go = asyncio.Event()
    router.engine.plays("Hel", go, "lo", STOP)
    turn = asyncio.create_task(asking.ask(conversation=conversation))
    await router.until(lambda: router.engine.running == 1)
    await http.delete(f"{router.url}/v1/conversations/{conversation}")
    go.set()
    made = await turn
    assert made["output"][0]["content"][0]["text"] == "Hello" and made["status"] == "completed"
    assert await asking.get(f"/v1/responses/{made['id']}") == 200
    refused = await asking.ask(conversation=conversation)
    assert (refused["status"], refused["param"]) == (404, "conversation")


class TextOnly(FakeReplica):
    """As llama.cpp with a model that takes no images, and whose template knows no tools."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        pages = {
            "/props": {
                "modalities": {"vision": False, "audio": False},
                "chat_template_caps": {"supports_tools": False},
            },
            "/slots": [],
        }
        if (page := pages.get(scope.get("path", ""))) is None:
            await super().__call__(scope, receive, send)
            return
        headers = [(b"content-type", b"application/json")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": json.dumps(page).encode()})


async def test_what_the_model_lacks_is_refused_by_name(http, start, way: str) -> None:
    """An image, and tools, whether or not one must be called: the engine would fail at the one and
    leave the others aside. Tools of which none is to be called are no reason, nor are calls that
    were made before."""
    replica = TextOnly(model="m")
    router = await start([replica], kind="llamacpp")
    asking = Asking(http, router, way)
    image = {"type": "input_image", "image_url": "data:image/png;base64,AA==", "detail": "auto"}
    refused = await asking.ask([{"role": "user", "content": [image]}])
    assert (refused["status"], refused["code"]) == (501, "not_supported")
    assert refused["message"] == "the model 'm' takes no images"
    named = {"type": "function", "name": "add"}
    for choice in ("auto", "required", named, None):
        refused = await asking.ask(tools=[TOOL], tool_choice=choice)
        assert (refused["status"], refused["code"]) == (501, "not_supported")
        assert "no place for them" in refused["message"] and "--model" in refused["message"]
    chat = {"model": "m", "messages": [{"role": "user", "content": "Hi"}]}
    function = {"type": "function", "function": {"name": "add"}}
    told = await http.post(f"{router.url}/v1/chat/completions", json={**chat, "tools": [function]})
    assert told.status_code == 501 and told.json()["error"]["code"] == "not_supported"
    message = {**chat, "max_tokens": 9, "tools": [{"name": "add", "input_schema": {}}]}
    told = await http.post(f"{router.url}/v1/messages", json=message)
    assert told.status_code == 501 and told.json()["type"] == "error"
    assert "no place for them" in told.json()["error"]["message"]
    assert not replica.seen
    assert (await asking.ask(tools=[TOOL], tool_choice="none"))["status"] == "completed"
    call = {"type": "function_call", "call_id": "c", "name": "add", "arguments": "{}"}
    output = {"type": "function_call_output", "call_id": "c", "output": "2"}
    before = [{"role": "user", "content": "Hi"}, call, output]
    assert (await asking.ask(before))["status"] == "completed"
