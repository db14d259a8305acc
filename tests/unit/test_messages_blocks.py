"""Anthropic messages as chat messages: every block, every refusal, and that prefixes stay."""

from typing import Any

import pytest

from sessile.api.messages_blocks import to_messages
from sessile.errors import InvalidRequest

USE = {"type": "tool_use", "id": "t1", "name": "weather", "input": {"city": "Zürich"}}
CALL = {
    "id": "t1",
    "type": "function",
    "function": {"name": "weather", "arguments": '{"city": "Zürich"}'},
}
IMAGE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"}}
IMAGE_PART = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}


def text(value: str, **more: Any) -> dict[str, Any]:
    """A text block."""
    return {"type": "text", "text": value, **more}


def user(*blocks: Any) -> dict[str, Any]:
    """A user's message."""
    return {"role": "user", "content": list(blocks)}


def model(*blocks: Any) -> dict[str, Any]:
    """A message of the model's."""
    return {"role": "assistant", "content": list(blocks)}


def result(content: Any = "sunny", **more: Any) -> dict[str, Any]:
    """The answer to `USE`."""
    return {"type": "tool_result", "tool_use_id": "t1", "content": content, **more}


def told(*messages: Any, system: Any = None) -> list[dict[str, Any]]:
    """The chat messages."""
    return to_messages(system, messages)


# -- system prompts


@pytest.mark.parametrize(
    ("system", "said"),
    [
        ("Be brief.", "Be brief."),
        ([text("Be brief.", cache_control={"type": "ephemeral"})], "Be brief."),
        ([text("Be brief."), text("Be kind.")], "Be brief.\nBe kind."),
        ([text("x-anthropic-billing-header: cc_version=2; cch=1a2b3;"), text("Be.")], "Be."),
        ("x-anthropic-billing-header: cch=1;\nBe.", "Be."),
    ],
)
def test_a_system_prompt_is_one_string(system, said):
    """Blocks are joined, and a line that is for accounts, and differs each time, is left out."""
    assert told(user(text("Hi")), system=system) == [
        {"role": "system", "content": said},
        {"role": "user", "content": "Hi"},
    ]


@pytest.mark.parametrize("system", [None, "", [], [text("")]])
def test_no_system_prompt(system):
    """Is no message."""
    assert told(user(text("Hi")), system=system) == [{"role": "user", "content": "Hi"}]


def test_a_system_message_stays_in_its_place():
    """It may come in the middle."""
    later = {"role": "system", "content": "Now be kind."}
    assert told(user(text("Hi")), later, user(text("Go")))[1] == later


# -- users


def test_a_string_is_short_for_a_text():
    """Both become the same."""
    assert told({"role": "user", "content": "Hi"}) == told(user(text("Hi")))


def test_images():
    """As data or by their address."""
    url = {"type": "image", "source": {"type": "url", "url": "http://x/y.png"}}
    (message,) = told(user(text("Look:"), IMAGE, url))
    assert message["content"] == [
        {"type": "text", "text": "Look:"},
        IMAGE_PART,
        {"type": "image_url", "image_url": {"url": "http://x/y.png"}},
    ]


def test_neighbours_of_one_role_are_one_message():
    """As the API has it; chat templates may insist on turns."""
    messages = told(user(text("a")), user(text("b"), IMAGE), model(text("c")), model(text("d")))
    assert [m["role"] for m in messages] == ["user", "assistant"]
    assert [part.get("text") for part in messages[0]["content"]] == ["a", "b", None]
    assert messages[1]["content"] == "cd"


# -- the model


def test_what_the_model_said():
    """Thought, text and calls are one message; what is encrypted is left out."""
    thought = {"type": "thinking", "thinking": "Hm.", "signature": "s"}
    hidden = {"type": "redacted_thinking", "data": "zz"}
    messages = told(user(text("Hi")), model(thought, hidden, text("Let me "), text("see."), USE),
                    user(result()))  # fmt: skip
    assert messages[1] == {
        "role": "assistant",
        "content": "Let me see.",
        "reasoning_content": "Hm.",
        "tool_calls": [CALL],
    }
    assert messages[2] == {"role": "tool", "tool_call_id": "t1", "content": "sunny"}


def test_a_call_alone_has_no_content():
    """Null, which engines take beside calls; an empty reply is an empty string."""
    messages = told(user(text("Hi")), model(USE), user(result()), model())
    assert messages[1]["content"] is None and messages[3]["content"] == ""


def test_thinking_that_was_left_out():
    """Its text is empty, and nothing is told."""
    thought = {"type": "thinking", "thinking": "", "signature": "s"}
    assert told(user(text("Hi")), model(thought, text("Yes")))[1] == {
        "role": "assistant",
        "content": "Yes",
    }


# -- results


@pytest.mark.parametrize(
    ("given", "content"),
    [
        (result("sunny"), "sunny"),
        (result([text("sunny"), text("warm")]), "sunny\nwarm"),
        (result([text("see"), IMAGE]), [{"type": "text", "text": "see"}, IMAGE_PART]),
        ({"type": "tool_result", "tool_use_id": "t1"}, ""),
        (result("no such city", is_error=True), "Error:\nno such city"),
        (result("Error: no such city", is_error=True), "Error: no such city"),
        (result([IMAGE], is_error=True), [{"type": "text", "text": "Error:"}, IMAGE_PART]),
        ({"type": "tool_result", "tool_use_id": "t1", "is_error": True}, "Error:"),
        (result("fine", is_error=False), "fine"),
    ],
)
def test_results(given, content):
    """A string, blocks, or nothing; an error says so."""
    assert told(user(text("Hi")), model(USE), user(given))[2]["content"] == content


def test_results_come_before_what_the_user_adds():
    """The user's words are a message of their own."""
    messages = told(user(text("Hi")), model(USE), user(result(), text("And now?")))
    assert [m["role"] for m in messages] == ["user", "assistant", "tool", "user"]


def test_a_conversation_grows_at_its_end():
    """The chat messages of each turn begin with those of the turn before, byte for byte."""
    turns = [
        user(text("Hi")), model({"type": "thinking", "thinking": "Hm", "signature": ""}, USE),
        user(result(), text("And?")), model(text("Fine.")), user(text("Bye"), IMAGE),
    ]  # fmt: skip
    before: list[dict[str, Any]] = []
    for count in (1, 3, 5):
        now = told(*turns[:count], system="Rules.")
        assert now[: len(before)] == before
        before = now


# -- refusals


@pytest.mark.parametrize(
    ("messages", "param"),
    [
        ([{"role": "tool", "content": "x"}], "messages[0].role"),
        ([{"role": "user"}], "messages[0].content"),
        ([user()], "messages[0].content"),
        ([{"role": "user", "content": ""}], "messages[0].content"),
        ([{"role": "user", "content": ["x"]}], "messages[0].content[0]"),
        ([user({"type": "text"})], "messages[0].content[0].text"),
        ([user({"text": "x"})], "messages[0].content[0].type"),
        ([user({"type": "document", "source": {}})], "messages[0].content[0].type"),
        ([user({"type": "search_result"})], "messages[0].content[0].type"),
        ([user({"type": "container_upload"})], "messages[0].content[0].type"),
        ([user(text("x", citations=[{}]))], "messages[0].content[0].citations"),
        ([user({**IMAGE, "transformations": {"a": 1}})], "messages[0].content[0].transformations"),
        ([user({"type": "image", "source": {"type": "file", "file_id": "f"}})],
         "messages[0].content[0].source.type"),
        ([user({"type": "image", "source": {**IMAGE["source"], "media_type": "image/bmp"}})],
         "messages[0].content[0].source.media_type"),
        ([user(USE)], "messages[0].content[0].type"),
        ([user(result())], "messages[0].content[0].tool_use_id"),
        ([user(text("Hi")), model(USE), user(result(), result())],
         "messages[2].content[1].tool_use_id"),
        ([user(text("Hi")), model(USE), user(text("x"), result())], "messages[2].content[1]"),
        ([user(text("Hi")), model(USE), user(result([{"type": "document"}]))],
         "messages[2].content[0].content[0].type"),
        ([user(text("Hi")), model(USE), user(result(is_error="yes"))],
         "messages[2].content[0].is_error"),
        ([user(text("Hi")), model(USE, USE)], "messages[1].content[1].id"),
        ([user(text("Hi")), model({**USE, "input": "x"})], "messages[1].content[0].input"),
        ([user(text("Hi")), model({**USE, "name": None})], "messages[1].content[0].name"),
        ([user(text("Hi")), model({"type": "server_tool_use"})], "messages[1].content[0].type"),
        ([user(text("Hi")), model({"type": "thinking"})], "messages[1].content[0].thinking"),
        ([user(text("Hi")), model(USE)], "messages"),
    ],
)  # fmt: skip
def test_what_is_refused(messages, param):
    """By its place."""
    with pytest.raises(InvalidRequest) as caught:
        told(*messages)
    assert caught.value.param == param


@pytest.mark.parametrize("system", [7, [{"type": "image"}], ["x"]])
def test_a_system_prompt_is_text(system):
    """Nothing else."""
    with pytest.raises(InvalidRequest, match="system"):
        told(user(text("Hi")), system=system)
