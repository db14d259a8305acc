"""However an answer is cut and goes on elsewhere, its client reads the same whole."""

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sessile.carry_on import (
    Seam,
    Told,
    beginning,
    decide,
    ending,
    failure,
    marker,
    may_break,
    parted,
    read_marker,
    read_told,
    room,
    shortened,
    with_text,
)
from sessile.relay import events

CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"
PIECES = st.lists(st.text(alphabet="ab \n\tçé", min_size=1, max_size=4), min_size=1, max_size=8)


def asked(**fields: Any) -> dict[str, Any]:
    """A chat request."""
    return {"model": "m", "messages": [{"role": "user", "content": "hi"}], **fields}


def stream(
    pieces: list[str], id: str, prompt: int, path: str = CHAT, made: int | None = None
) -> bytes:
    """A whole answer as an engine streams it."""
    head = {"id": id, "object": "chunk", "created": 1, "model": "m"}

    def chunk(finish: str | None = None, **part: Any) -> dict[str, Any]:
        body = {"delta": part} if path == CHAT else {"text": part.get("content", "")}
        return {**head, "choices": [{"index": 0, **body, "finish_reason": finish}]}

    chunks = [chunk(role="assistant", content="")] if path == CHAT else []
    chunks += [chunk(content=piece) for piece in pieces]
    made = len(pieces) if made is None else made
    usage = {"prompt_tokens": prompt, "completion_tokens": made, "total_tokens": prompt + made,
             "prompt_tokens_details": {"cached_tokens": prompt}}  # fmt: skip
    chunks += [chunk("stop"), {**head, "choices": [], "usage": usage}]
    return b"".join([b"data: " + msgspec.json.encode(c) + b"\n\n" for c in chunks]) + (
        b"data: [DONE]\n\n"
    )


def text_of(data: bytes) -> str:
    """What a client reads."""
    parts = [c.get("delta", c) for body in events(data) for c in body["choices"]]
    return "".join(part.get("content") or part.get("text") or "" for part in parts)


def in_pieces(data: bytes, at: int) -> list[bytes]:
    return [data[i : i + at] for i in range(0, len(data), at)]


@given(PIECES, st.data(), st.sampled_from([CHAT, TEXT]))
def test_cut_anywhere_and_continued_it_is_the_same_whole(pieces, data, path):
    """A cut at any byte, white space at the seam, chunks of any size: the same text, one name, one
    role, one finish, and the counts of the whole."""
    whole = stream(pieces, "first", 7, path)
    cut = data.draw(st.integers(0, len(whole)))
    told = read_told(whole[:cut])
    given, owed = parted(told.text)
    said = 0
    while len("".join(pieces[:said])) < len(given):
        said += 1
    # An engine that is given this text goes on with the rest of the whole.
    rest = "".join(pieces)[len(given) :]
    more = stream([rest] if rest else [], "second", 7 + said, path, made=len(pieces) - said)
    seam = Seam(told, path, owed=owed, tokens=said)
    if told.finish is not None:
        usage = None if told.counted else {"prompt_tokens": 7, "completion_tokens": len(pieces)}
        joined = told.data + ending(told, path, None, usage)
    else:
        size = data.draw(st.integers(1, 200))
        joined = told.data + b"".join([seam.feed(part) for part in in_pieces(more, size)])
    assert text_of(joined) == "".join(pieces)
    bodies = list(events(joined))
    assert {body["id"] for body in bodies} == ({"first"} if told.head else {"second"})
    choices = [choice for body in bodies for choice in body["choices"]]
    assert [c["finish_reason"] for c in choices if c["finish_reason"]] == ["stop"]
    if path == CHAT:
        assert sum("role" in choice["delta"] for choice in choices) == 1
    counts = [body["usage"] for body in bodies if body.get("usage")]
    assert [(c["prompt_tokens"], c["completion_tokens"]) for c in counts] == [(7, len(pieces))]
    assert joined.endswith(b"data: [DONE]\n\n")


@given(PIECES, st.integers(0, 400), st.integers(0, 400))
def test_cut_twice_it_is_still_the_same_whole(pieces, first, second):
    """What goes on may be lost again: the copy of what was sent is all that is needed."""
    sent, text = b"", "".join(pieces)
    for cut in (first, second, None):
        told = read_told(sent)
        given, owed = parted(told.text)
        if told.finish is not None:
            break
        more = stream([text[len(given) :] or "!"], f"id-{cut}", 3)
        seam = Seam(told, CHAT, owed=owed, tokens=0)
        sent = told.data + seam.feed(more if cut is None else more[:cut])
    assert text_of(read_told(sent).data).rstrip("!") == text


def test_only_the_beginning_of_an_answer_is_told_begin_again():
    """No event, or the role alone: the client has seen nothing that could be repeated."""
    for data in (b"", stream(["a"], "x", 1)[:150], b": comment\n\n"):
        told = read_told(data)
        assert decide(CHAT, asked(tools=[{}], logprobs=True), told).action == "restart"


TOLD = Told(text="one two", begun=True)


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"response_format": {"type": "json_schema"}}, "response_format"),
        ({"logprobs": True}, "logprobs"),
        ({"n": 2}, "several choices"),
        ({"regex": "a+"}, "regex"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "more than text"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, "ends with a reply"),
    ],
)
def test_what_cannot_go_on_from_its_text_fails_or_begins_again(fields, why):
    """Constrained, counted or many-voiced output: failed by name once sent, else begun again."""
    plan = decide(CHAT, asked(**fields), TOLD)
    assert plan.action == "fail" and why in plan.why
    assert decide(CHAT, asked(**fields), TOLD, sent=False).action == "restart"


@pytest.mark.parametrize("delta", [{"tool_calls": [{}]}, {"reasoning_content": "hm"}])
def test_a_call_or_a_thought_under_way_is_no_text(delta):
    """Even with text before it."""
    chunk = {"choices": [{"index": 0, "delta": delta, "finish_reason": None}]}
    told = read_told(beginning(CHAT, "so") + b"data: " + msgspec.json.encode(chunk) + b"\n\n")
    plan = decide(CHAT, asked(), told)
    assert plan.action == "fail" and next(iter(delta)) in plan.why


def test_plain_requests_go_on_where_the_engine_can():
    """Tools that were not called, and a form that asks for nothing, are no obstacle."""
    fields = {"tools": [{}], "tool_choice": "auto", "response_format": {"type": "text"}, "n": 1}
    assert decide(CHAT, asked(**fields), TOLD).action == "continue"
    assert decide(TEXT, {"prompt": "a"}, TOLD).action == "continue"
    assert decide(TEXT, {"prompt": ["a", "b"]}, TOLD).action == "fail"
    assert decide(CHAT, asked(), TOLD, able=False).action == "fail"


def test_an_answer_with_its_finish_reason_needs_its_end_only():
    """Nothing is generated for it, whatever was asked for."""
    told = read_told(stream(["a"], "x", 1)[:-80])
    assert decide(CHAT, asked(logprobs=True), told).action == "finish"


def test_an_engine_s_own_failure_is_seen_and_is_not_told():
    """A 5xx in the stream or an aborted finish ends what counts; the client's own error does not,
    nor do texts that only look like one."""
    whole = stream(["a", '{"error" "abort"'], "x", 1)
    assert read_told(whole).finish == "stop"
    for event, broken in (
        (b'data: {"error": {"message": "engine died", "code": 500}}\n\n', True),
        (b'data: {"error": {"message": "too long", "code": 400}}\n\n', False),
        (b'data: {"choices": [{"index":0,"delta":{},"finish_reason": "abort"}]}\n\n', True),
    ):
        assert may_break(event) and (failure(event) is not None) is broken
        told = read_told(beginning(CHAT, "a") + event + b"data: [DONE]\n\n")
        assert (told.data == beginning(CHAT, "a")) is broken


def test_a_reply_that_the_client_began_goes_on_as_one():
    """Its own prefill and the text are one message."""
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "He"}]
    fields = asked(messages=messages, continue_final_message=True)
    assert decide(CHAT, fields, TOLD).action == "continue"
    assert with_text(fields, "llo") == [messages[0], {"role": "assistant", "content": "Hello"}]
    assert messages[1]["content"] == "He"


def test_limits_shrink_by_what_was_made():
    """Never below one token; what was not asked for stays out."""
    document = asked(max_tokens=10, max_completion_tokens=12, min_tokens=3, top_k=5)
    assert room(document) == 10
    assert shortened(document, 4) == asked(
        max_tokens=6, max_completion_tokens=8, min_tokens=0, top_k=5
    )
    assert shortened(document, 40)["max_tokens"] == 1
    assert room(asked()) is None and shortened(asked(), 4) == asked()


def test_white_space_that_does_not_come_again_is_owed_no_longer():
    """The model may go on otherwise: nothing of what it says is lost."""
    seam = Seam(TOLD, CHAT, owed=" \n")
    more = seam.feed(stream([" ", "\t\nx", " \ny"], "x", 1))
    assert text_of(more) == "\t\nx \ny"


def test_text_chunks_become_chat_chunks():
    """llama.cpp goes on with a chat as a text completion."""
    seam = Seam(TOLD, CHAT, tokens=2)
    bodies = list(events(seam.feed(stream(["a"], "x", 5, TEXT))))
    assert bodies[0]["choices"][0]["delta"] == {"content": "a"}
    assert bodies[1]["choices"][0]["finish_reason"] == "stop"
    assert bodies[2]["usage"]["completion_tokens"] == 3


def test_the_marker_is_a_comment_that_names_the_replica():
    """SSE clients skip it, the router's own protocols read it."""
    assert marker("two").startswith(b":") and read_marker(marker("two")) == "two"
    assert read_marker(b": a comment\n\n") is None
    assert read_told(marker("two")).begun is False
