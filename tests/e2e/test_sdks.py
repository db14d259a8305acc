"""Real client libraries against a router: our own SDK first, then the ones that people have."""

import ast
import asyncio
import doctest
import inspect
import io
import subprocess
import sys
from contextlib import redirect_stdout
from typing import Any

import openai
import pytest
from agents import (
    Agent,
    OpenAIChatCompletionsModel,
    OpenAIResponsesModel,
    OpenAIResponsesWSModel,
    Runner,
    function_tool,
    set_tracing_disabled,
)
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from openai.types.chat import ChatCompletionMessageParam
from pydantic_ai import Agent as PydanticAgent
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.models.openai import OpenAIResponsesModel as PydanticResponses
from pydantic_ai.providers.openai import OpenAIProvider

import sessile
from sessile import AsyncClient, Client, TextDelta, errors
from sessile.client import (
    async_client,
    async_run,
    async_session,
    events,
    sync_client,
    sync_run,
    sync_session,
)

WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
        },
    },
}


def weather(city: str) -> str:
    """The weather of a city."""
    return f"sunny in {city}"


@pytest.fixture
def client(router: str) -> Any:
    """OpenAI's client."""
    with openai.OpenAI(base_url=f"{router}/v1", api_key="none", max_retries=0) as client:
        yield client


# -- our own


def examples() -> list[doctest.DocTest]:
    """Every docstring of the SDK that holds an example."""
    finder = doctest.DocTestFinder(exclude_empty=True)
    modules = (
        events, sync_client, sync_session, sync_run, async_client, async_session, async_run
    )  # fmt: skip
    return [test for module in modules for test in finder.find(module) if test.examples]


@pytest.mark.parametrize("example", examples(), ids=lambda test: test.name)
async def test_sdk_examples_are_true(example: doctest.DocTest, router: str) -> None:
    """Each docstring's example does what it says, against a running router.

    Those of the async client use `await` as `python -m asyncio` allows it.
    """
    is_async = "async_" in example.name
    with Client(router) as sync:
        async with AsyncClient(router) as loop:
            client: Any = loop if is_async else sync
            names = {name: getattr(sessile, name) for name in sessile.__all__}
            names |= {"asyncio": asyncio, "url": router, "client": client}
            names |= {"session": client.session()}
            await run_example(example, names)


async def run_example(test: doctest.DocTest, names: dict[str, Any]) -> None:
    """As `doctest` would, and with `await`; a plain example runs in a thread, as a program does."""
    checker = doctest.OutputChecker()
    for example in test.examples:
        code = compile(
            example.source, test.name, "single", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True
        )
        printed = io.StringIO()
        try:
            with redirect_stdout(printed):
                if code.co_flags & inspect.CO_COROUTINE:
                    await eval(code, names)
                else:
                    await asyncio.to_thread(exec, code, names)
        except Exception as error:  # an example may say that it raises
            assert example.exc_msg is not None, f"{example.source} raised {error!r}"
            name = f"{type(error).__module__}.{type(error).__qualname__}"
            assert f"{name}: {error}\n" == example.exc_msg
        else:
            got = printed.getvalue()
            assert checker.check_output(example.want, got, 0), f"{example.source} gave {got!r}"


def test_every_public_method_has_an_example() -> None:
    """No method of the SDK's classes is left without one."""
    with_example = {test.name.removeprefix("sessile.client.") for test in examples()}
    for module, names in (
        (sync_client, ("Client",)),
        (sync_session, ("Session",)),
        (sync_run, ("Run",)),
        (async_client, ("AsyncClient",)),
        (async_session, ("AsyncSession",)),
        (async_run, ("AsyncReply", "AsyncRun")),
        (events, ("Reply",)),
    ):
        for name in names:
            for method in vars(getattr(module, name)):
                if not method.startswith("_"):
                    path = f"{module.__name__.rpartition('.')[2]}.{name}.{method}"
                    assert path in with_example, path


def test_a_session_stays_where_it_is(router: str) -> None:
    """Its turns run on one replica; forks and another process go on from its head."""
    with Client(router) as client:
        session = client.session(system="You echo.", tools=[weather])
        replies = [session.send(text) for text in ("one", "two")]
        assert len({reply.receipt.replica for reply in replies}) == 1
        assert replies[1].receipt.reason == "bound"
        assert [call.name for call in replies[0].tool_calls] == ["weather"]
        assert replies[0].text == "echo sunny in Oslo"
        before = replies[1].usage.prompt_tokens
        assert before is not None
        for child in session.fork(2):
            grown = child.send("three").usage.prompt_tokens
            assert grown is not None and grown > before / 2
        code = (
            "import sys; from sessile import Client\n"
            "with Client(sys.argv[1]) as client:\n"
            "    reply = client.attach(sys.argv[2]).send('four')\n"
            "    print(reply.receipt.replica, reply.text, sep='|')"
        )
        other = subprocess.run(
            [sys.executable, "-c", code, router, session.id],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert other.stdout.strip() == f"{replies[0].receipt.replica}|echo four"


async def test_forks_run_side_by_side(router: str) -> None:
    """Each child is a session of its own, with the parent's history."""
    async with AsyncClient(router) as client:
        session = client.session()
        first = await session.send("remember this")
        children = await session.fork(3)
        replies = await asyncio.gather(*(child.send(f"n{i}") for i, child in enumerate(children)))
        assert [reply.text for reply in replies] == ["echo n0", "echo n1", "echo n2"]
        assert len({reply.session for reply in (first, *replies)}) == 4
        assert first.usage.prompt_tokens is not None
        assert all((r.usage.prompt_tokens or 0) > first.usage.prompt_tokens for r in replies)


def test_a_closed_session_is_over_for_everybody(router: str) -> None:
    """A handle elsewhere is told so, and so is whoever wants to attach."""
    with Client(router) as client:
        session = client.session()
        session.send("hello")
        elsewhere = client.attach(session.id)
        session.close()
        with pytest.raises(errors.SessionExpired):
            elsewhere.send("still there?")
        with pytest.raises(errors.SessionExpired):
            client.attach(session.id)
        with pytest.raises(errors.SessionNotFound):
            client.attach("nobody")


def test_keys_and_models_of_the_sdk(locked_router: str) -> None:
    """A wrong key, another tenant's session and an unknown model are errors of their own."""
    with Client(locked_router, "right") as client:
        session = client.session()
        session.send("hello")
        with pytest.raises(errors.ModelNotFound):
            client.session(model="nothing").send("hello")
        with Client(locked_router, "other") as other, pytest.raises(errors.SessionNotFound):
            other.attach(session.id)
    for key in ("wrong", None):
        with Client(locked_router, key) as client, pytest.raises(errors.Unauthorized):
            client.session(model="echo").send("hello")


# -- openai


def test_openai_chat_comes_back_without_naming_a_session(client: openai.OpenAI) -> None:
    """A request that extends a known conversation runs where that one ran."""
    messages: list[ChatCompletionMessageParam] = [{"role": "user", "content": "chat one"}]
    seen = set()
    for follow_up in ("chat two", "chat three", "chat four"):
        raw = client.chat.completions.with_raw_response.create(model="echo", messages=messages)
        text = raw.parse().choices[0].message.content
        assert text == f"echo {messages[-1].get('content')}"
        seen.add((raw.headers["x-sessile-replica"], raw.headers["x-sessile-session"]))
        messages += [{"role": "assistant", "content": text}, {"role": "user", "content": follow_up}]
    assert len(seen) == 1
    assert raw.headers["x-sessile-reason"] == "bound"


def test_openai_chat_stream(client: openai.OpenAI) -> None:
    """The pieces arrive, and the usage only where it was asked for."""
    messages: list[ChatCompletionMessageParam] = [{"role": "user", "content": "stream"}]
    chunks = list(client.chat.completions.create(model="echo", messages=messages, stream=True))
    assert (
        "".join(c.delta.content or "" for chunk in chunks for c in chunk.choices) == "echo stream"
    )
    assert all(chunk.usage is None for chunk in chunks)
    with_usage = client.chat.completions.create(
        model="echo", messages=messages, stream=True, stream_options={"include_usage": True}
    )
    assert list(with_usage)[-1].usage is not None


async def test_openai_async_chat_with_a_session_header(router: str) -> None:
    """Calls side by side under one id all go to that session's replica."""
    async with openai.AsyncOpenAI(
        base_url=f"{router}/v1", api_key="none", default_headers={"X-Session-ID": "mine"}
    ) as client:

        async def ask(text: str) -> tuple[str, str]:
            raw = await client.chat.completions.with_raw_response.create(
                model="echo", messages=[{"role": "user", "content": text}]
            )
            return raw.headers["x-sessile-session"], raw.headers["x-sessile-replica"]

        assert len({await ask("first"), *await asyncio.gather(*map(ask, "abc"))}) == 1
        stream = await client.chat.completions.create(
            model="echo", messages=[{"role": "user", "content": "s"}], stream=True
        )
        text = [choice.delta.content or "" async for c in stream for choice in c.choices]
        assert "".join(text) == "echo s"


def test_openai_chat_tools(client: openai.OpenAI) -> None:
    """A tool call and its result pass through, streamed and not."""
    messages: list[Any] = [{"role": "user", "content": "tools"}]
    first = client.chat.completions.create(model="echo", messages=messages, tools=[WEATHER])
    (call,) = first.choices[0].message.tool_calls or ()
    assert first.choices[0].finish_reason == "tool_calls" and call.type == "function"
    assert call.function.arguments == '{"city": "Oslo"}'
    messages += [
        first.choices[0].message.model_dump(exclude_none=True),
        {"role": "tool", "tool_call_id": call.id, "content": "sunny"},
    ]
    with client.chat.completions.stream(model="echo", messages=messages, tools=[WEATHER]) as stream:
        assert stream.get_final_completion().choices[0].message.content == "echo sunny"


def test_openai_errors(client: openai.OpenAI, locked_router: str) -> None:
    """The client raises its own classes from our status and code."""
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="nothing", messages=[{"role": "user", "content": "x"}])
    assert caught.value.code == "model_not_found"
    with pytest.raises(openai.NotFoundError) as caught:
        client.responses.create(model="echo", input="x", previous_response_id="resp_nothing")
    assert caught.value.code == "previous_response_not_found"
    with (
        openai.OpenAI(base_url=f"{locked_router}/v1", api_key="wrong", max_retries=0) as other,
        pytest.raises(openai.AuthenticationError),
    ):
        other.models.list()


def test_openai_responses(client: openai.OpenAI) -> None:
    """Not streamed, streamed, continued, read again; a function call and its result."""
    raw = client.responses.with_raw_response.create(model="echo", input="r1")
    first = raw.parse()
    assert first.output_text == "echo r1"
    assert first.usage is not None and first.usage.input_tokens_details.cached_tokens is not None
    events = list(
        client.responses.create(
            model="echo", input="r2", previous_response_id=first.id, stream=True
        )
    )
    assert [event.sequence_number for event in events] == list(range(len(events)))  # type: ignore[union-attr]
    assert events[0].type == "response.created" and events[-1].type == "response.completed"
    second = events[-1].response
    assert second.output_text == "echo r2" and second.previous_response_id == first.id
    assert client.responses.retrieve(second.id).output_text == "echo r2"
    tools: Any = [{"type": "function", "strict": False, **WEATHER["function"]}]
    third = client.responses.create(
        model="echo", input="r3", previous_response_id=second.id, tools=tools
    )
    (call,) = [item for item in third.output if item.type == "function_call"]
    result: Any = {"type": "function_call_output", "call_id": call.call_id, "output": "rainy"}
    fourth = client.responses.create(
        model="echo", input=[result], previous_response_id=third.id, tools=tools
    )
    assert fourth.output_text == "echo rainy"


def test_openai_responses_over_a_websocket(client: openai.OpenAI) -> None:
    """Several turns on one connection, each following the last; an error leaves it usable."""
    with client.responses.connect() as connection:
        previous = None
        for text in ("w1", "w2"):
            more: Any = {"previous_response_id": previous} if previous else {}
            connection.response.create(model="echo", input=text, **more)
            said = ""
            for event in connection:
                if event.type == "response.output_text.delta":
                    said += event.delta
                if event.type == "response.completed":
                    previous = event.response.id
                    break
            assert said == f"echo {text}"
        connection.response.create(model="echo", input="x", previous_response_id="resp_nothing")
        event = connection.recv()
        assert event.type == "error"
        connection.response.create(model="echo", input="after")
        assert connection.recv().type == "response.created"


# -- frameworks


@pytest.mark.parametrize("kind", [OpenAIChatModel, PydanticResponses])
async def test_pydantic_ai(kind: Any, router: str) -> None:
    """An agent with a tool and a second run that goes on from the first; and a stream."""
    async with openai.AsyncOpenAI(base_url=f"{router}/v1", api_key="none") as client:
        model = kind("echo", provider=OpenAIProvider(openai_client=client))
        agent = PydanticAgent(model, tools=[weather])
        first = await agent.run("how is it?")
        assert first.output == "echo sunny in Oslo"
        async with agent.run_stream("and now?", message_history=first.all_messages()) as second:
            assert await second.get_output() == "echo sunny in Oslo"


def test_langchain(router: str) -> None:
    """Invoke, tools and a stream; the second turn finds its replica by the messages alone."""
    chat = ChatOpenAI(
        base_url=f"{router}/v1", api_key="none", model="echo", include_response_headers=True
    )
    messages: list[Any] = [HumanMessage("langchain one")]
    first = chat.invoke(messages)
    messages += [AIMessage(first.text), HumanMessage("langchain two")]
    second = chat.invoke(messages)
    headers = [reply.response_metadata["headers"] for reply in (first, second)]
    assert second.text == "echo langchain two"
    for name in ("x-sessile-session", "x-sessile-replica"):
        assert headers[0][name] == headers[1][name]
    with_tools = chat.bind_tools([tool(weather)])
    asked = with_tools.invoke([HumanMessage("tools")])
    (call,) = asked.tool_calls
    told = ToolMessage(weather(**call["args"]), tool_call_id=call["id"])
    pieces = with_tools.stream([HumanMessage("tools"), asked, told])
    assert "".join(piece.text for piece in pieces) == "echo sunny in Oslo"


@pytest.mark.parametrize(
    "model", [OpenAIChatCompletionsModel, OpenAIResponsesModel, OpenAIResponsesWSModel]
)
async def test_openai_agents(model: Any, router: str) -> None:
    """A run with a tool, and a second that follows it, on every transport, streamed and not."""
    set_tracing_disabled(True)
    async with openai.AsyncOpenAI(base_url=f"{router}/v1", api_key="none") as client:
        spoken = model(model="echo", openai_client=client)
        agent = Agent(name="a", model=spoken, tools=[function_tool(weather)])
        first = await Runner.run(agent, "how is it?")
        assert first.final_output == "echo sunny in Oslo"
        more = {"previous_response_id": first.last_response_id}
        second = Runner.run_streamed(
            agent, "and now?", **({} if model is OpenAIChatCompletionsModel else more)
        )
        types = [event.type async for event in second.stream_events()]
        assert "raw_response_event" in types
        assert second.final_output == "echo sunny in Oslo"
        if model is OpenAIResponsesWSModel:
            await spoken.close()


def test_the_sdk_streams_what_the_engine_streams(router: str) -> None:
    """Piece by piece, not all at the end."""
    with Client(router) as client:
        pieces = [e.text for e in client.session().stream("hello") if isinstance(e, TextDelta)]
    assert pieces[0] == "echo" and "".join(pieces) == "echo hello"
