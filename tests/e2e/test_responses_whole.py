"""Conversations, MCP tools and compaction with real clients, against real processes."""

from collections.abc import Iterator
from typing import Any

import openai
import pytest
from agents import (
    Agent,
    HostedMCPTool,
    OpenAIConversationsSession,
    OpenAIResponsesModel,
    Runner,
    set_tracing_disabled,
)
from mcp.server.mcpserver import MCPServer


@pytest.fixture
def client(router: str) -> Iterator[openai.OpenAI]:
    """OpenAI's client."""
    with openai.OpenAI(base_url=f"{router}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def weather(serve: Any) -> Iterator[dict[str, Any]]:
    """A real MCP server as a tool."""
    server = MCPServer("weather")

    @server.tool()
    def weather(city: str) -> str:
        """The weather of a city."""
        return f"sunny in {city}"

    app = server.streamable_http_app(stateless_http=True)
    with serve(app, lifespan="on") as url:
        yield {
            "type": "mcp", "server_label": "weather", "server_url": f"{url}/mcp",
            "require_approval": "never",
        }  # fmt: skip


def test_a_conversation_of_openais_client(client: openai.OpenAI) -> None:
    """Its turns extend it, its items are listed, and it is gone when it is deleted."""
    made = client.conversations.create(metadata={"topic": "tea"})
    for text in ("one", "two"):
        answer = client.responses.create(model="echo", input=text, conversation=made.id)
        assert answer.output_text == f"echo {text}"
    items = list(client.conversations.items.list(made.id, order="asc", limit=3))
    assert [item.content[0].text for item in items] == [  # type: ignore[union-attr]
        "one", "echo one", "two", "echo two",
    ]  # fmt: skip
    client.conversations.delete(made.id)
    with pytest.raises(openai.NotFoundError):
        client.conversations.retrieve(made.id)


def test_a_response_is_listed_counted_compacted_and_deleted(client: openai.OpenAI) -> None:
    """The calls beside create and retrieve, each by its method."""
    made = client.responses.create(model="echo", input="remember tea")
    (item,) = client.responses.input_items.list(made.id)
    assert item.content[0].text == "remember tea"  # type: ignore[union-attr]
    counted = client.responses.input_tokens.count(
        model="echo", input="and?", previous_response_id=made.id
    )
    assert counted.input_tokens > 0
    compacted = client.responses.compact(model="echo", previous_response_id=made.id)
    given: Any = [*(item.to_dict() for item in compacted.output), {"role": "user", "content": "x"}]
    assert client.responses.create(model="echo", input=given).output_text == "echo x"
    client.responses.delete(made.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(made.id)


def test_an_mcp_tool_is_run(client: openai.OpenAI, weather: Any) -> None:
    """By the router, within one streamed response."""
    with client.responses.stream(model="echo", input="Weather?", tools=[weather]) as stream:
        kinds = [event.type for event in stream]
        made = stream.get_final_response()
    assert "response.mcp_list_tools.completed" in kinds
    assert "response.mcp_call.completed" in kinds
    assert [item.type for item in made.output] == ["mcp_list_tools", "mcp_call", "message"]
    assert made.output_text == "echo sunny in Oslo"


def test_an_mcp_call_is_approved(client: openai.OpenAI, weather: Any) -> None:
    """The response asks, and the next one goes on from the answer."""
    asks = {**weather, "require_approval": "always"}
    first = client.responses.create(model="echo", input="Weather?", tools=[asks])  # type: ignore[list-item]
    request = first.output[-1]
    assert request.type == "mcp_approval_request"
    second = client.responses.create(
        model="echo",
        previous_response_id=first.id,
        tools=[asks],  # type: ignore[list-item]
        input=[
            {"type": "mcp_approval_response", "approval_request_id": request.id, "approve": True}
        ],
    )
    assert second.output_text == "echo sunny in Oslo"


async def test_openai_agents_with_a_hosted_mcp_tool_and_a_conversation(
    router: str, weather: Any
) -> None:
    """An agent of OpenAI's framework keeps its history in a conversation, and uses the server's
    tool."""
    set_tracing_disabled(True)
    async with openai.AsyncOpenAI(base_url=f"{router}/v1", api_key="none") as client:
        agent = Agent(
            name="a",
            instructions="Be brief.",
            tools=[HostedMCPTool(tool_config=weather)],
            model=OpenAIResponsesModel("echo", client),
        )
        session = OpenAIConversationsSession(openai_client=client)
        first = await Runner.run(agent, "Weather?", session=session)
        assert first.final_output == "echo sunny in Oslo"
        second = await Runner.run(agent, "And now?", session=session)
        assert second.final_output == "echo sunny in Oslo"
        assert len(await session.get_items()) >= 4
