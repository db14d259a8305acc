"""Compaction and truncation: what is kept word for word, what stands for the rest."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sessile.api.compaction import (
    compaction,
    kept_of,
    read_summary,
    summary_request,
    truncated,
)
from sessile.api.responses_items import to_messages
from sessile.errors import InvalidRequest
from sessile.sealed import seal, unseal


def user(text: str) -> dict:
    return {"type": "message", "role": "user", "content": text}


def said(text: str) -> dict:
    return {"type": "message", "role": "assistant", "content": text}


def call(id: str) -> dict:
    return {"type": "function_call", "call_id": id, "name": "f", "arguments": "{}"}


def output(id: str, text: str = "3") -> dict:
    return {"type": "function_call_output", "call_id": id, "output": text}


LONG = [user("old " * 100), said("older " * 100)]


def test_the_last_request_and_what_follows_it_are_kept():
    """What the user wants now, and the calls made for it, stay as they are."""
    newest = [user("add"), call("a"), output("a")]
    assert kept_of([*LONG, *newest]) == newest


def test_a_long_tail_keeps_its_last_calls_and_the_request():
    """Where the work on one request is nearly all there is, its newest part and it stay."""
    items = [user("do it"), said("w" * 4000), call("a"), output("a"), call("b"), output("b")]
    assert kept_of(items) == [user("do it"), call("a"), output("a"), call("b"), output("b")]


def test_a_result_that_is_too_long_goes_with_its_call():
    """Neither is kept: the summary tells of it."""
    items = [*LONG, user("read"), call("a"), output("a", "x" * 9000)]
    assert kept_of(items) == [user("read")]


def test_a_call_that_waits_is_kept():
    """Its result is still to come, and must find it."""
    items = [user("do"), call("a"), *LONG[1:], user("and?")]
    kept = kept_of(items)
    assert call("a") in kept and kept[-1] == user("and?")
    with pytest.raises(InvalidRequest):
        kept_of([])


def test_a_compaction_stands_for_all_before_it():
    """The rules stay, then come the summary, what was kept, and what follows."""
    item = compaction("cmp_1", "We spoke of tea.", [user("sum"), call("a")])
    messages = to_messages("Rules.", [LONG, [item]], [output("a"), user("go on")])
    assert [message["role"] for message in messages] == [
        "system", "user", "user", "assistant", "tool", "user",
    ]  # fmt: skip
    assert messages[0]["content"] == "Rules." and "We spoke of tea." in messages[1]["content"]


def test_a_compaction_is_compacted_again():
    """The request that it kept is still the one that is worked on."""
    item = compaction("cmp_1", "So far.", [user("the task"), said("...")])
    assert kept_of([item, said("w" * 900), call("a"), output("a")])[0] == user("the task")


@pytest.mark.parametrize(
    "content",
    [
        "gAAAAABfromelsewhere", "sessile1.", "sessile1.!!!", "sessile1.AAAA", "",
        seal("reasoning", ["h"]), seal("compaction", "x"), seal("compaction", ["x", 3]),
        seal("compaction", ["x", [compaction("c", "inner", [])]]),
    ],
)  # fmt: skip
def test_what_was_not_made_here_is_refused(content):
    """Other providers' items, other kinds of ours and made-up ones are told apart by their name."""
    item = {"type": "compaction", "encrypted_content": content}
    with pytest.raises(InvalidRequest) as caught:
        to_messages(None, [], [item])
    assert caught.value.param == "input[0].encrypted_content"


@given(st.recursive(st.none() | st.integers(-9, 9) | st.text(), st.lists))
def test_what_is_sealed_comes_back(content):
    """Word for word."""
    assert unseal("x", seal("x", content), "here") == content


def test_the_summary_is_asked_for_behind_the_same_prompt():
    """The engine finds its prefix: messages and tools are those of the turn, and none is called."""
    document = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "tools": [{}],
                "temperature": 1, "stream": True}  # fmt: skip
    asked = summary_request(document)
    assert asked["messages"][:-1] == document["messages"] and asked["tools"] == [{}]
    assert asked["tool_choice"] == "none" and "stream" not in asked
    answer = b'{"choices": [{"message": {"content": " It was tea. "}}]}'
    assert read_summary(answer) == "It was tea."
    assert read_summary(b"{}") == read_summary(b"x") == ""


def test_the_oldest_messages_are_left_out():
    """Never the rules, nor the newest request and what follows it; results go with their calls."""
    messages = to_messages(
        "Rules.",
        [[user("a" * 50), call("x"), output("x"), said("b" * 50)]],
        [user("now"), call("y")],
    )
    some = truncated(messages, 1, 0.25)
    assert some[0]["content"] == "Rules." and len(some) < len(messages)
    assert [m["role"] for m in truncated(messages, 1, 1.0)] == ["system", "user", "assistant"]
    for share in (0.1, 0.3, 0.5, 0.7, 0.9):
        left = truncated(messages, 1, share)
        made = {c["id"] for m in left for c in m.get("tool_calls", ())}
        assert all(m["tool_call_id"] in made for m in left if m["role"] == "tool")
    assert truncated(messages[:2], 1, 1.0) == messages[:2]
