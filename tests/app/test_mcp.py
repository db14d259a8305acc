"""MCP tools of a response: a real MCP server over streamable HTTP, called by the router."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx2
import openai
import pytest
from mcp.server.mcpserver import MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp_types import ToolAnnotations
from openai import AsyncOpenAI
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from sessile.api.mcp_tools import upstream_name

_EVENT = TypeAdapter(ResponseStreamEvent)


class Calculator:
    """A served MCP server: what it was asked, and what it is to wait for."""

    def __init__(self) -> None:
        self.asked: list[Any] = []
        self.headers: list[dict[bytes, bytes]] = []
        self.go = asyncio.Event()
        self.url = ""

    def app(self) -> Any:
        server = MCPServer("calculator")

        @server.tool(annotations=ToolAnnotations(read_only_hint=True))
        def add(a: int, b: int) -> str:
            """Add two numbers."""
            self.asked.append((a, b))
            return str(a + b)

        @server.tool()
        async def hang() -> str:
            """Never answers."""
            await self.go.wait()
            return "late"

        @server.tool()
        def fail() -> str:
            """Does not work."""
            raise ToolError("out of order")

        served = server.streamable_http_app(stateless_http=True)

        async def app(scope: Any, receive: Any, send: Any) -> None:
            if scope["type"] == "http":
                self.headers.append(dict(scope["headers"]))
            await served(scope, receive, send)

        return app


@pytest.fixture
async def calculator(serve) -> AsyncIterator[Calculator]:
    calculator = Calculator()
    _, url = await serve(calculator.app())
    calculator.url = f"{url}/mcp"
    yield calculator
    calculator.go.set()


def tool(calculator: Calculator, **fields: Any) -> Any:
    return {
        "type": "mcp", "server_label": "calc", "server_url": calculator.url,
        "require_approval": "never", **fields,
    }  # fmt: skip


ADD = upstream_name("calc", "add")


async def test_the_model_uses_a_servers_tool(router, client, calculator):
    """Tools are listed, a call is run, and the model goes on with its result in one response."""
    router.engine.calls(ADD, '{"a":1,"b":2}')
    router.engine.says("Three.")
    made = await client.responses.create(
        model="m", input="1+2?", tools=[tool(calculator, authorization="secret")]
    )
    Response.model_validate_json(made.to_json(), strict=True)
    listed, call, message = made.output
    assert [t.name for t in listed.tools] == ["add", "hang", "fail"]
    assert (call.type, call.output, call.error, call.status) == ("mcp_call", "3", None, "completed")
    assert made.output_text == "Three." and calculator.asked == [(1, 2)]
    assert made.usage.output_tokens == 4
    assert calculator.headers[-1][b"authorization"] == b"Bearer secret"
    assert "secret" not in (await client.responses.retrieve(made.id)).to_json()
    said = router.engine.asked[1]["messages"]
    assert [m["role"] for m in said] == ["user", "assistant", "tool"]
    assert said[1]["tool_calls"][0]["function"]["name"] == ADD and said[2]["content"] == "3"


@pytest.mark.parametrize("stored", [True, False])
@pytest.mark.parametrize("stream", [True, False])
async def test_a_repeated_key_calls_no_tool_again(router, calculator, stored, stream):
    """The whole response is given again, with all of its engine's calls, and nothing runs."""
    router.engine.calls(ADD, '{"a":1,"b":2}')
    router.engine.says("Three.")
    body = {"model": "m", "input": "1+2?", "tools": [tool(calculator)], "store": stored,
            "stream": stream}  # fmt: skip
    async with httpx2.AsyncClient(base_url=router.url, trust_env=False) as http:
        answers = [
            await http.post("/v1/responses", json=body, headers={"Idempotency-Key": "k"})
            for _ in range(2)
        ]
    assert answers[0].text == answers[1].text and "Three." in answers[0].text
    assert calculator.asked == [(1, 2)] and len(router.engine.asked) == 2


async def test_the_next_turn_does_not_list_again(router, client, calculator):
    """What an earlier turn has listed is in the conversation, and its calls stay in the prompt."""
    router.engine.calls(ADD, '{"a":1,"b":2}')
    first = await client.responses.create(model="m", input="1+2?", tools=[tool(calculator)])
    asked = len(calculator.headers)
    again = await client.responses.create(
        model="m", input="And?", tools=[tool(calculator)], previous_response_id=first.id
    )
    assert [item.type for item in again.output] == ["message"]
    assert len(calculator.headers) == asked
    before, after = (router.engine.asked[n]["messages"] for n in (1, 2))
    assert after[: len(before)] == before
    assert [t["function"]["name"] for t in router.engine.asked[2]["tools"]][0] == ADD


async def test_a_stream_tells_of_every_step(router, client, calculator):
    """The events are valid, in sequence, and end with one last word."""
    router.engine.calls(ADD, '{"a":1,"b":2}')
    router.engine.says("Three.")
    stream = await client.responses.create(
        model="m", input="1+2?", tools=[tool(calculator)], stream=True
    )
    events = [event async for event in stream]
    for event in events:
        _EVENT.validate_json(event.to_json(), strict=True)
    assert [event.sequence_number for event in events] == list(range(len(events)))
    kinds = [event.type.removeprefix("response.") for event in events]
    assert kinds[2:6] == [
        "output_item.added", "mcp_list_tools.in_progress", "mcp_list_tools.completed",
        "output_item.done",
    ]  # fmt: skip
    ran = kinds.index("mcp_call.in_progress")
    assert kinds[ran:][:6] == [
        "mcp_call.in_progress", "mcp_call_arguments.delta", "mcp_call_arguments.delta",
        "mcp_call_arguments.done", "mcp_call.completed", "output_item.done",
    ]  # fmt: skip
    assert kinds[-1] == "completed" and kinds.count("created") == 1
    assert events[-1].response.output_text == "Three."


async def test_a_call_waits_for_its_approval(router, client, calculator):
    """The response ends with the request; once it is approved the call is run, and the model goes
    on."""
    asks = tool(calculator, require_approval="always")
    router.engine.calls(ADD, '{"a":4,"b":5}')
    first = await client.responses.create(model="m", input="4+5?", tools=[asks])
    request = first.output[-1]
    assert (request.type, request.arguments) == ("mcp_approval_request", '{"a":4,"b":5}')
    assert calculator.asked == []
    router.engine.says("Nine.")
    yes = {"type": "mcp_approval_response", "approval_request_id": request.id, "approve": True}
    second = await client.responses.create(
        model="m", input=[yes], tools=[asks], previous_response_id=first.id
    )
    call, _ = second.output
    assert (call.approval_request_id, call.output) == (request.id, "9")
    assert second.output_text == "Nine." and calculator.asked == [(4, 5)]
    with pytest.raises(openai.BadRequestError):  # it has been answered
        await client.responses.create(
            model="m", input=[yes], tools=[asks], previous_response_id=second.id
        )
    assert calculator.asked == [(4, 5)]


async def test_an_approval_without_its_server_is_refused(router, client, calculator):
    """What the user approved would not be run, and nobody would say so."""
    asks = tool(calculator, require_approval="always")
    router.engine.calls(ADD, '{"a":4,"b":5}')
    first = await client.responses.create(model="m", input="4+5?", tools=[asks])
    yes = {"type": "mcp_approval_response", "approval_request_id": first.output[-1].id,
           "approve": True}  # fmt: skip
    with pytest.raises(openai.BadRequestError, match="MCP server that is none of the tools"):
        await client.responses.create(model="m", input=[yes], previous_response_id=first.id)
    assert len(router.engine.asked) == 1 and calculator.asked == []


async def test_a_call_that_is_denied_is_not_run(router, client, calculator):
    """The model is told so, with the reason."""
    asks = tool(calculator, require_approval={"always": {"tool_names": ["add"]}})
    router.engine.calls(ADD, '{"a":4,"b":5}')
    first = await client.responses.create(model="m", input="4+5?", tools=[asks])
    no = {"type": "mcp_approval_response", "approval_request_id": first.output[-1].id,
          "approve": False, "reason": "too dear"}  # fmt: skip
    await client.responses.create(
        model="m", input=[no], tools=[asks], previous_response_id=first.id
    )
    assert calculator.asked == []
    assert router.engine.asked[1]["messages"][-1]["content"].endswith("call: too dear")


async def test_a_server_that_hangs_fails_its_call_only(start, calculator):
    """After its time the call has an error, and the turn goes on."""
    router = await start(mcp={"timeout_s": 1.0})
    router.engine.calls(upstream_name("calc", "hang"), "{}")
    router.engine.says("It hangs.")
    async with AsyncOpenAI(base_url=router.url + "/v1", api_key="none") as client:
        made = await client.responses.create(model="m", input="Go", tools=[tool(calculator)])
    call = made.output[1]
    assert call.status == "failed" and call.error.type == "mcp_protocol_error"
    assert "did not answer within 1 s" in call.error.message
    assert made.status == "completed" and made.output_text == "It hangs."
    assert "did not answer" in router.engine.asked[1]["messages"][-1]["content"]


async def test_a_tools_own_error_is_told_to_the_model(router, client, calculator):
    """It is the call's error, in the tool's words."""
    router.engine.calls(upstream_name("calc", "fail"), "{}")
    made = await client.responses.create(model="m", input="Go", tools=[tool(calculator)])
    call = made.output[1]
    assert call.error.type == "mcp_tool_execution_error"
    assert "out of order" in router.engine.asked[1]["messages"][-1]["content"]


async def test_a_server_that_is_not_there_lists_nothing(router, client):
    """The list says why, and the model answers without its tools."""
    gone = {"type": "mcp", "server_label": "calc", "server_url": "http://127.0.0.1:9/mcp"}
    router.engine.says("Alone.")
    made = await client.responses.create(model="m", input="Go", tools=[gone])
    assert made.output[0].error and made.output[0].tools == []
    assert made.output_text == "Alone." and "tools" not in router.engine.asked[0]


async def test_a_server_that_says_nothing_lists_nothing(start):
    """One that takes the connection and is then silent costs its time, and no more."""
    router = await start(mcp={"timeout_s": 0.5})

    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    silent = await asyncio.start_server(listen, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{silent.sockets[0].getsockname()[1]}/mcp"
    server = {"type": "mcp", "server_label": "calc", "server_url": url}
    router.engine.says("Alone.")
    async with silent, AsyncOpenAI(base_url=router.url + "/v1", api_key="none") as client:
        made = await client.responses.create(model="m", input="Go", tools=[server])
    assert "did not answer" in made.output[0].error and made.output_text == "Alone."


async def test_a_server_that_hangs_holds_up_no_websocket(start, calculator):
    """The turn that waits for it goes on after its time, and other lanes meanwhile."""
    router = await start(mcp={"timeout_s": 1.0})
    router.engine.calls(upstream_name("calc", "hang"), "{}")
    async with (
        AsyncOpenAI(base_url=router.url + "/v1", api_key="none") as client,
        client.responses.connect() as line,
    ):
        slow = {"stream_id": "slow", "tools": [tool(calculator)]}
        await line.send({"type": "response.create", "model": "m", "input": "Go", **slow})
        await router.until(lambda: len(router.engine.asked) == 1)
        await line.send(
            {"type": "response.create", "model": "m", "input": "Hi", "stream_id": "quick"}
        )
        ended: list[Any] = []
        while len(ended) < 2:
            event = await line.recv()
            if event.type == "response.completed":
                ended.append(event)
    assert [event.stream_id for event in ended] == ["quick", "slow"]
    (call,) = [item for item in ended[1].response.output if item.type == "mcp_call"]
    assert call.status == "failed" and "did not answer within 1 s" in call.error.message


async def test_calls_beyond_the_limit_are_not_run(router, client, calculator):
    """With `max_tool_calls` used up no tool may be called any more."""
    router.engine.calls(ADD, '{"a":1,"b":1}')
    router.engine.calls(ADD, '{"a":2,"b":2}')
    made = await client.responses.create(
        model="m", input="Go", tools=[tool(calculator)], max_tool_calls=1
    )
    assert calculator.asked == [(1, 1)]
    assert router.engine.asked[1]["tool_choice"] == "none"
    assert [c.status for c in made.output if c.type == "mcp_call"] == ["completed", "failed"]
    assert made.max_tool_calls == 1 and made.status == "completed"


async def test_arguments_that_are_no_object_are_the_calls_error(router, client, calculator):
    """Nothing is run, and the model may try again."""
    router.engine.calls(ADD, "[1")
    made = await client.responses.create(model="m", input="Go", tools=[tool(calculator)])
    assert "not a JSON object" in made.output[1].error.message and calculator.asked == []


async def test_a_function_call_beside_it_is_the_clients(router, client, calculator):
    """The server's call is run, and the response ends for the client to run its own."""
    calls = [("call_1", ADD, '{"a":1,"b":2}'), ("call_2", "mine", "{}")]
    chunks = [
        {"choices": [{"index": 0, "finish_reason": None, "delta": {"tool_calls": [
            {"index": n, "id": id, "type": "function",
             "function": {"name": name, "arguments": arguments}}]}}]}
        for n, (id, name, arguments) in enumerate(calls)
    ]  # fmt: skip
    chunks.append({"choices": [{"index": 0, "delta": {}, "finish_reason": "tool_calls"}]})
    router.engine.plays(*chunks)
    mine = {"type": "function", "name": "mine", "parameters": {"type": "object"}, "strict": False}
    made = await client.responses.create(model="m", input="Go", tools=[tool(calculator), mine])
    assert [item.type for item in made.output[1:]] == ["mcp_call", "function_call"]
    assert made.output[1].output == "3" and len(router.engine.asked) == 1
    output = {"type": "function_call_output", "call_id": "call_2", "output": "ok"}
    again = await client.responses.create(
        model="m", input=[output], tools=[tool(calculator), mine], previous_response_id=made.id
    )
    assert again.status == "completed"


async def test_an_engine_lost_after_a_call_fails_the_response(router, client, calculator):
    """What has been told stays, the last word is that it failed, and that is what is stored."""
    router.engine.calls(ADD, '{"a":1,"b":2}')
    router.engine.refuses(400, "no more")
    stream = await client.responses.create(
        model="m", input="Go", tools=[tool(calculator)], stream=True
    )
    events = [event async for event in stream]
    assert events[-1].type == "response.failed"
    assert [event.sequence_number for event in events] == list(range(len(events)))
    found = await client.responses.retrieve(events[-1].response.id)
    assert found.status == "failed" and found.output[1].output == "3"


async def test_with_keys_the_hosts_must_be_named(start, calculator):
    """A router that others may call calls no server for them unless the settings name its host."""
    keys = {"api_keys": "a=one"}
    for mcp, status in (({}, 403), ({"hosts": ["127.0.0.1"]}, 200), ({"hosts": ["other"]}, 403)):
        router = await start(auth=keys, mcp=mcp)
        async with httpx2.AsyncClient(base_url=router.url) as http:
            answer = await http.post(
                "/v1/responses",
                json={"model": "m", "input": "Go", "tools": [tool(calculator)]},
                headers={"Authorization": "Bearer one"},
            )
        assert answer.status_code == status


async def test_a_client_that_hangs_up_while_a_tool_runs(router, client, calculator):
    """The connection to the server is closed with the response: nothing of it is left."""
    router.engine.calls(upstream_name("calc", "hang"), "{}")
    asking = asyncio.create_task(
        client.responses.create(model="m", input="Go", tools=[tool(calculator)])
    )
    await router.until(lambda: len(router.engine.asked) == 1 and router.engine.running == 0)
    await asyncio.sleep(0.2)
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
