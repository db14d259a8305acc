"""A Responses request as a chat request: fields, items, refusals, and prefixes that hold."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sessile.api.responses_body import chat_body, read_request
from sessile.api.responses_items import to_messages
from sessile.errors import InvalidRequest, NotSupported
from sessile.sealed import seal

CALL = {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}"}
FUNCTION = {"type": "function", "name": "f", "parameters": {}, "strict": None, "async": None}
OUTPUT = {"type": "function_call_output", "call_id": "c1", "output": "3"}


def said(text: str) -> dict:
    part = {"type": "output_text", "text": text, "annotations": []}
    return {"type": "message", "id": "msg_1", "role": "assistant", "content": [part]}


def chat(past=(), **fields) -> dict:
    return chat_body(read_request({"model": "m", "input": "hi", **fields}), "m", list(past))


def test_a_plain_request_asks_nothing_that_the_client_did_not():
    """Only the model, the message and the stream go upstream where nothing else was said."""
    assert chat() == {
        "model": "m", "messages": [{"role": "user", "content": "hi"}], "stream": True,
    }  # fmt: skip


def test_every_field_has_its_chat_name():
    """The fields that chat completions call otherwise are renamed, those of the engine kept."""
    schema = {"type": "object", "properties": {}}
    body = chat(
        instructions="Be brief.",
        max_output_tokens=9,
        temperature=0,
        top_p=0.5,
        top_logprobs=2,
        user="u",
        reasoning={"effort": "low"},
        text={"format": {"type": "json_schema", "name": "s", "schema": schema, "strict": True}},
        tools=[{"type": "function", "name": "f", "parameters": schema, "description": "d"}],
        tool_choice={"type": "function", "name": "f"},
        parallel_tool_calls=False,
        metadata={"a": "b"}, store=False, include=["reasoning.encrypted_content"],
        prompt_cache_key="k", truncation="disabled", service_tier="auto",
        chat_template_kwargs={"enable_thinking": False}, top_k=3,
    )  # fmt: skip
    assert body == {
        "model": "m",
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "hi"},
        ],
        "stream": True,
        "max_tokens": 9,
        "temperature": 0,
        "top_p": 0.5,
        "logprobs": True,
        "top_logprobs": 2,
        "user": "u",
        "reasoning_effort": "low",
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "s", "schema": schema, "strict": True},
        },
        "tools": [
            {
                "type": "function",
                "function": {"name": "f", "description": "d", "parameters": schema},
            }
        ],
        "tool_choice": {"type": "function", "function": {"name": "f"}},
        "parallel_tool_calls": False,
        "chat_template_kwargs": {"enable_thinking": False, "thinking": True},
        "top_k": 3,
    }


def test_logprobs_can_be_included_without_alternatives():
    """`include` alone asks for the log-probability of each token that was chosen."""
    body = chat(include=["message.output_text.logprobs"])
    assert (body["logprobs"], body["top_logprobs"]) == (True, 0)


def test_items_become_messages():
    """Each kind of item has its message; what the model said in a row is one."""
    thought = {"type": "reasoning", "id": "rs_1", "summary": [],
               "content": [{"type": "reasoning_text", "text": "hm"}]}  # fmt: skip
    image = {"type": "input_image", "image_url": "data:image/png;base64,AA==", "detail": "low"}
    items = [
        {"role": "developer", "content": "Rules."},
        {"role": "user", "content": [{"type": "input_text", "text": "Look: "}, image]},
        thought, said("I will."), CALL, {**CALL, "call_id": "c2"},
        OUTPUT, {**OUTPUT, "call_id": "c2", "output": [{"type": "input_text", "text": "4"}]},
        {"role": "assistant", "content": "Seven."},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Thanks"}]},
    ]  # fmt: skip
    function = {"name": "f", "arguments": "{}"}
    assert to_messages(None, [], items) == [
        {"role": "system", "content": "Rules."},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "Look: "},
                {
                    "type": "image_url",
                    "image_url": {"url": "data:image/png;base64,AA==", "detail": "low"},
                },
            ],
        },
        {
            "role": "assistant",
            "content": "I will.",
            "reasoning_content": "hm",
            "tool_calls": [
                {"id": "c1", "type": "function", "function": function},
                {"id": "c2", "type": "function", "function": function},
            ],
        },
        {"role": "tool", "tool_call_id": "c1", "content": "3"},
        {"role": "tool", "tool_call_id": "c2", "content": "4"},
        {"role": "assistant", "content": "Seven."},
        {"role": "user", "content": "Thanks"},
    ]


def test_text_after_a_call_stays_with_it():
    """The results of a call follow the message that made it, even if the model went on talking."""
    messages = to_messages(None, [], [CALL, said("Wait."), OUTPUT])
    assert [message["role"] for message in messages] == ["assistant", "tool"]
    assert messages[0]["content"] == "Wait."


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": 3}, "input"),
        ({"input": None}, "input"),
        ({"input": []}, "input"),
        ({"input": [3]}, "input[0]"),
        ({"input": [{}]}, "input[0].type"),
        ({"input": [{"role": "robot", "content": "x"}]}, "input[0].role"),
        ({"input": [{"role": ["user"], "content": "x"}]}, "input[0].role"),
        ({"input": [{"role": "user"}]}, "input[0].content"),
        ({"input": [{"role": "user", "content": [{"type": "x"}]}]}, "input[0].content[0].type"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_text"}]}]},
            "input[0].content[0].text",
        ),
        ({"input": [{"type": "function_call", "call_id": "c"}]}, "input[0].name"),
        ({"input": [OUTPUT]}, "input[0].call_id"),
        ({"input": [CALL, OUTPUT, OUTPUT]}, "input[2].call_id"),
        ({"instructions": 3}, "instructions"),
        ({"model": 3}, "model"),
        ({"stream": "yes"}, "stream"),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"max_output_tokens": 1.5}, "max_output_tokens"),
        ({"metadata": {"a": 1}}, "metadata"),
        ({"tools": {}}, "tools"),
        ({"tools": [{"type": "function"}]}, "tools[0].name"),
        ({"tools": [{"type": "function", "name": "f", "parameters": 1}]}, "tools[0].parameters"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": {"type": "function", "name": "g"}}, "tool_choice.name"),
        ({"text": {"format": {"type": "xml"}}}, "text.format.type"),
        ({"text": {"format": {"type": "json_schema", "name": "s"}}}, "text.format.schema"),
        ({"text": "short"}, "text"),
        ({"include": ["everything"]}, "include[0]"),
        ({"previous_response_id": 3}, "previous_response_id"),
        ({"conversation": 3}, "conversation"),
        ({"conversation": {}}, "conversation.id"),
        ({"conversation": "c", "previous_response_id": "r"}, "previous_response_id"),
        ({"truncation": "some"}, "truncation"),
        ({"service_tier": 3}, "service_tier"),
        ({"max_tool_calls": 0}, "max_tool_calls"),
        ({"top_logprobs": 21}, "top_logprobs"),
        ({"metadata": {str(n): "" for n in range(17)}}, "metadata"),
        ({"metadata": {"k": "v" * 513}}, "metadata"),
        (
            {"context_management": [{"type": "compaction"}]},
            "context_management[0].compact_threshold",
        ),
        ({"tools": [{"type": "mcp", "server_label": "a b"}]}, "tools[0].server_label"),
        ({"tools": [{"type": "mcp", "server_label": "a"}]}, "tools[0].server_url"),
        (
            {"tools": [{"type": "mcp", "server_label": "a", "server_url": "file:///etc"}]},
            "tools[0].server_url",
        ),
        ({"tools": [{"type": "function", "name": "f"}] * 2}, "tools[1]"),
        ({"input": [{"type": "custom_tool_call", "name": "x"}]}, "input[0].input"),
        (
            {"input": [{"type": "compaction", "encrypted_content": "gAAA"}]},
            "input[0].encrypted_content",
        ),
        (
            {"input": [{"type": "mcp_approval_response", "approval_request_id": "no"}]},
            "input[0].approval_request_id",
        ),
        ({"messages": []}, "messages"),
        ({"n": 2}, "n"),
    ],
)
def test_what_is_wrong_is_named(fields, param):
    """A wrong type, an unknown role or a missing field is told by its place in the request."""
    with pytest.raises(InvalidRequest) as caught:
        chat(**fields)
    assert caught.value.param == param


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": {"id": "p"}}, "prompt"),
        ({"service_tier": "ultrafast"}, "service_tier"),
        ({"context_management": [{"type": "forgetting"}]}, "context_management[0].type"),
        ({"include": ["web_search_call.results"]}, "include[0]"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tools": [{"type": "file_search", "vector_store_ids": []}]}, "tools[0].type"),
        ({"tools": [{"type": "code_interpreter", "container": "c"}]}, "tools[0].type"),
        ({"tools": [{"type": "computer_use_preview"}]}, "tools[0].type"),
        ({"tools": [{"type": "image_generation"}]}, "tools[0].type"),
        (
            {"tools": [{"type": "custom", "name": "x", "format": {"type": "grammar"}}]},
            "tools[0].format",
        ),
        (
            {"tools": [{"type": "mcp", "server_label": "x", "connector_id": "c"}]},
            "tools[0].connector_id",
        ),
        ({"tool_choice": {"type": "shell"}}, "tool_choice.type"),
        ({"reasoning": {"summary": "detailed"}}, "reasoning.summary"),
        ({"text": {"verbosity": "low"}}, "text.verbosity"),
        ({"tools": [{**FUNCTION, "namespace": "n"}]}, "tools[0].namespace"),
        ({"tools": [{**FUNCTION, "namespace": "n"}]}, "tools[0].namespace"),
        ({"tools": [{"type": "custom", "name": "x", "strict": True}]}, "tools[0].strict"),
        ({"reasoning": {"budget_tokens": 5}}, "reasoning.budget_tokens"),
        ({"text": {"stop": "x"}}, "text.stop"),
        ({"text": {"format": {"type": "text", "max": 5}}}, "text.format.max"),
        (
            {"text": {"format": {"type": "json_schema", "name": "x", "schema": {}, "lax": True}}},
            "text.format.lax",
        ),
        ({"input": [{"type": "computer_call", "id": "x"}]}, "input[0].type"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image", "file_id": "x"}]}]},
            "input[0].content[0].file_id",
        ),
    ],
)
def test_what_is_not_supported_is_refused_by_name(fields, param):
    """Nothing that would change the answer is silently left out."""
    with pytest.raises(NotSupported) as caught:
        chat(**fields)
    assert caught.value.param == param


def test_defaults_written_out_are_no_demand():
    """A client that sends every default is served like one that sends none."""
    asked = read_request(
        {
            "model": "m", "input": "hi", "background": False, "generate": True, "prompt": None,
            "conversation": None, "service_tier": "default", "tools": [], "tool_choice": "auto",
            "text": {"format": {"type": "text"}, "verbosity": "medium"}, "truncation": None,
            "reasoning": {"effort": None, "summary": "auto"}, "stream_options": None,
            "context_management": [],
        }
    )  # fmt: skip
    assert asked.chat == {}


def test_instructions_are_those_of_this_turn():
    """Earlier turns give their items, not their instructions."""
    past = [[{"role": "user", "content": "one"}], [said("two")]]
    messages = chat(past, instructions="New.", input="three", previous_response_id="r")["messages"]
    assert [message["content"] for message in messages] == ["New.", "one", "two", "three"]


_stretch = st.lists(
    st.one_of(
        st.builds(lambda text: {"role": "user", "content": text}, st.text(max_size=5)),
        st.builds(said, st.text(max_size=5)),
        st.just({"type": "reasoning", "content": [{"type": "reasoning_text", "text": "r"}]}),
        st.just(CALL),
        st.just({"type": "reasoning", "summary": [], "encrypted_content": "x"}),
    ),
    max_size=5,
)


@given(st.lists(_stretch, max_size=6), _stretch)
def test_a_turn_extends_the_one_before(past, new):
    """Whatever the items, earlier messages are the beginning of the later ones, byte for byte."""
    encode = msgspec.json.encode
    before = to_messages("Rules.", past[:-1], past[-1] if past else [])
    after = to_messages("Rules.", past, new)
    assert encode(after).startswith(encode(before)[:-1])


def test_no_effort_is_not_to_think():
    """An effort of none is told to the chat template, which is what decides it."""
    body = chat(reasoning={"effort": "none"})
    assert body["chat_template_kwargs"] == {"enable_thinking": False, "thinking": False}
    assert "reasoning_effort" not in body


def test_a_custom_tool_is_a_function_of_one_string():
    """Its calls and their outputs stand in the prompt as that function's."""
    tool = {"type": "custom", "name": "sh", "description": "Runs it."}
    used = {"type": "custom_tool_call", "call_id": "c", "name": "sh", "input": 'echo "é"'}
    output = {"type": "custom_tool_call_output", "call_id": "c", "output": "é"}
    body = chat(
        [[used]], input=[output], tools=[tool], tool_choice={"type": "custom", "name": "sh"}
    )
    (function,) = body["tools"]
    assert function["function"]["parameters"]["required"] == ["input"]
    assert body["tool_choice"] == {"type": "function", "function": {"name": "sh"}}
    call, answer = body["messages"]
    assert call["tool_calls"][0]["function"]["arguments"] == '{"input":"echo \\"é\\""}'
    assert answer == {"role": "tool", "tool_call_id": "c", "content": "é"}


def test_allowed_tools_are_the_only_ones_shown():
    """The others are tools of the response, but the model does not see them."""
    tools = [{"type": "function", "name": name} for name in ("f", "g")]
    wanted = [{"type": "function", "name": "g"}]
    choice = {"type": "allowed_tools", "mode": "required", "tools": wanted}
    body = chat(tools=tools, tool_choice=choice)
    assert [tool["function"]["name"] for tool in body["tools"]] == ["g"]
    assert body["tool_choice"] == "required"


def test_calls_of_mcp_servers_stand_in_the_prompt_with_their_results():
    """What was run, what failed, what was denied, and what was approved and then run."""

    def run(id, **fields):
        call = {"type": "mcp_call", "id": id, "server_label": "s", "name": "t", "arguments": "{}"}
        return {**call, "output": None, "error": None, **fields}

    def ask(id):
        call = {"server_label": "s", "name": "t", "arguments": "{}"}
        return {"type": "mcp_approval_request", "id": id, **call}

    def answer(id, approve):
        return {"type": "mcp_approval_response", "approval_request_id": id, "approve": approve}

    failed = {"type": "mcp_protocol_error", "code": 0, "message": "it broke"}
    messages = to_messages(
        None,
        [
            [{"type": "mcp_list_tools", "id": "l", "server_label": "s", "tools": []}],
            [said("Hm."), run("a", output="1"), run("b", error=failed), ask("c"), ask("d")],
            [answer("c", False), answer("d", True)],
        ],
        [run("e", output="2", approval_request_id="d")],
    )
    assert [message["role"] for message in messages] == [
        "assistant", "tool", "assistant", "tool", "assistant", "tool", "tool",
    ]  # fmt: skip
    assert messages[0]["content"] == "Hm."
    assert messages[0]["tool_calls"][0]["function"]["name"] == "s__t"
    told = {m["tool_call_id"]: m["content"] for m in messages if m["role"] == "tool"}
    assert told == {
        "a": "1", "b": "The call failed: it broke",
        "c": "The user did not approve this call.", "d": "2",
    }  # fmt: skip


def test_an_approval_counts_once():
    """A second answer to one request is one that nothing waits for."""
    request = {"type": "mcp_approval_request", "id": "r", "server_label": "s", "name": "t",
               "arguments": "{}"}  # fmt: skip
    answer = {"type": "mcp_approval_response", "approval_request_id": "r", "approve": False}
    with pytest.raises(InvalidRequest) as caught:
        to_messages(None, [[request]], [answer, answer])
    assert caught.value.param == "input[1].approval_request_id"


def test_a_fault_of_the_past_is_not_the_inputs():
    """A client that is told of it does not look for it in what it has just sent."""
    foreign = {"type": "compaction", "encrypted_content": "x"}
    with pytest.raises(InvalidRequest) as caught:
        to_messages(None, [[said("Hm."), foreign]], [said("x")])
    assert caught.value.param == "conversation[1].encrypted_content"


def test_sealed_reasoning_is_read_again():
    """Reasoning that a client carries sealed stands in the prompt as if it had been kept."""
    item = {"type": "reasoning", "summary": [], "encrypted_content": seal("reasoning", ["h", "m"])}
    (message,) = to_messages(None, [], [item])
    assert message["reasoning_content"] == "hm"


def test_ten_thousand_items_are_one_prompt():
    """A long conversation is read in one go, and stays in order."""
    messages = to_messages(None, [], [{"role": "user", "content": str(n)} for n in range(10_000)])
    assert [message["content"] for message in messages] == [str(n) for n in range(10_000)]
