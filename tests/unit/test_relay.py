"""The bytes on their way: nothing is lost, only the usage chunk of who did not ask is withheld."""

from hypothesis import given
from hypothesis import strategies as st

from sessile.api.wire import engine_error
from sessile.relay import UsageRelay, events, read_reply

DELTA = b'data: {"choices":[{"index":0,"delta":{"content":"a"}}]}\n\n'
COUNTS = {"prompt_tokens": 3, "completion_tokens": 1}
LAST = b'data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":1}}\n\n'
DONE = b"data: [DONE]\n\n"


def relayed(stream, cuts, wanted):
    """What a client gets of `stream` when it comes in the given pieces."""
    relay = UsageRelay(wanted)
    edges = [0, *sorted(cuts), len(stream)]
    pieces = [stream[a:b] for a, b in zip(edges, edges[1:], strict=False)]
    out = b"".join(relay.feed(piece) for piece in pieces if piece) + relay.rest()
    return out, relay.usage_body


@given(st.sets(st.integers(0, len(DELTA * 3 + LAST + DONE))), st.booleans(), st.booleans())
def test_however_it_is_cut_the_client_gets_the_same(cuts, wanted, crlf):
    """Cuts in the middle of events, either line end: all is relayed, usage only if asked for."""
    ends = b"\r\n" if crlf else b"\n"
    stream, expected = (
        part.replace(b"\n", ends)
        for part in (DELTA * 3 + LAST + DONE, DELTA * 3 + (LAST if wanted else b"") + DONE)
    )
    out, body = relayed(stream, {cut for cut in cuts if cut <= len(stream)}, wanted)
    assert out == expected
    assert body is not None and body["usage"] == COUNTS


@given(st.binary(max_size=200), st.sets(st.integers(0, 200), max_size=5))
def test_garbage_passes_as_it_is(data, cuts):
    """What is no event stream is not ours to mend."""
    if b'"usage"' not in data:
        assert relayed(data, {c for c in cuts if c <= len(data)}, False)[0] == data


def test_usage_inside_a_delta_is_noted_and_relayed():
    """Some engines put it into the last chunk that has text; that one is the client's."""
    both = b'data: {"choices":[{"delta":{}}],"usage":{"prompt_tokens":3}}\n\n'
    out, body = relayed(both, set(), False)
    assert out == both and body["usage"] == {"prompt_tokens": 3}


def test_a_null_usage_is_no_usage():
    """OpenAI sends null until the end."""
    chunk = b'data: {"choices":[{"delta":{}}],"usage":null}\n\n'
    assert relayed(chunk, set(), False) == (chunk, None)


def test_a_reply_is_put_together_from_its_chunks():
    """Text and tool calls of the first choice, in pieces or whole; other choices are not it."""
    stream = (
        b'data: {"choices":[{"index":0,"delta":{"role":"assistant","content":"he"}},'
        b'{"index":1,"delta":{"content":"no"}}]}\n\n'
        b'data: {"choices":[{"index":0,"delta":{"content":"y","tool_calls":'
        b'[{"index":0,"function":{"name":"f","arguments":"{"}}]}}]}\n\n'
        b'data: {"choices":[{"index":0,"delta":{"tool_calls":'
        b'[{"index":0,"function":{"arguments":"}"}}]}}]}\n\n' + DONE
    )
    whole = {
        "role": "assistant",
        "content": "hey",
        "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}],
    }
    assert read_reply(events(stream)) == whole
    assert read_reply([{"choices": [{"message": whole}]}]) == whole
    assert read_reply([{"object": "list"}]) is None


def test_bytes_that_are_no_text_pass_and_tell_nothing():
    """An engine that cuts a character in two has sent no JSON."""
    cut = b'data: {"choices":[],"usage":{"prompt_tokens":3},"id":"\xff"}\n\n'
    assert relayed(cut, set(), False) == (cut, None)
    assert list(events(cut + DELTA + DONE)) == [
        {"choices": [{"index": 0, "delta": {"content": "a"}}]}
    ]
    assert "500" in str(engine_error(500, b'{"error":{"message":"\xff"}}'))
