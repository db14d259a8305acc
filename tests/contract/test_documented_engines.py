"""The adapters of engines that do not run here, on answers made from their documentation; each
file in `recorded/` names what it was made from."""

import json
from typing import Any

import pytest

from messages_told import message_of
from recorded_engines import NOW, RECORDED, exchanges, recorded, replies, usage_of
from sessile.api.wire import engine_error
from sessile.engines.kinds import engine
from sessile.errors import ModelNotFound, PromptTooLong, ReplicaRefused, ReplicaUnreachable
from sessile.relay import UsageRelay, events, read_reply
from sessile.router.engine import Call, Reply, Usage

DOCUMENTED = ["tensorrt-llm", "triton", "tgi", "ollama", "lmstudio"]
IDENTITIES = {
    "tensorrt-llm": ("TinyLlama-1.1B-Chat-v1.0", None, "1.4.0rc4"),
    "triton": ("llama-3.1-8b-instruct", None, None),
    "tgi": ("meta-llama/Llama-3.1-8B-Instruct", 8192, "3.3.6"),
    "ollama": ("llama3.2:latest", 65536, "0.14.2"),
    "lmstudio": ("google/gemma-4-26b-a4b", 16384, None),
}
TELL_LOAD = ["tensorrt-llm", "triton", "tgi"]


@pytest.fixture(params=DOCUMENTED)
def kind(request: pytest.FixtureRequest) -> str:
    """Every kind of engine in turn."""
    return str(request.param)


def test_each_answer_names_what_it_was_made_from() -> None:
    """Whoever reads it is told that no server said so."""
    for kind in DOCUMENTED:
        for case in (RECORDED / kind).glob("*.json"):
            assert "by its documentation" in recorded(kind, case.stem)["engine"]


def test_a_replica_says_what_it_serves(kind: str) -> None:
    """Models, context and version; none of them has anything that tells two starts apart."""
    identity = engine(kind).read_identity(replies(kind, "identity"))
    model, context, version = IDENTITIES[kind]
    assert identity.models[0] == model
    assert (identity.context_tokens, identity.version) == (context, version)
    assert (identity.incarnation, identity.warning) == (None, None)


def test_a_ready_replica_is_told_from_one_that_is_not(kind: str) -> None:
    """Its own page says so; anything but 200 is not ready."""
    adapter = engine(kind)
    adapter.read_health(*replies(kind, "health"))
    for status in (400, 503):
        with pytest.raises(ReplicaUnreachable, match=f"answered {status}"):
            adapter.read_health(Reply(status, b""))


def test_load_is_read_where_it_is_told(kind: str) -> None:
    """Two requests run and three wait; an engine that does not tell says nothing, not zero."""
    adapter = engine(kind)
    idle, busy = (adapter.read_load(replies(kind, f"load_{w}"), NOW) for w in ("idle", "busy"))
    assert idle.at == busy.at == NOW
    told = (busy.running, busy.waiting)
    assert told == ((2, 3) if kind in TELL_LOAD else (None, None))
    memory = {"tensorrt-llm": (25 * 32, 1000 * 32, 64), "triton": (25 * 64, 6239 * 64, 512)}
    slots = 4 if kind == "lmstudio" else None
    found = (busy.used_tokens, busy.capacity_tokens, busy.slots)
    assert found == memory.get(kind, (None, None, slots))


def test_figures_that_another_reader_took_leave_the_load_unknown() -> None:
    """TensorRT-LLM gives each iteration's figures out once; TGI has no gauge before its first
    request; pages that are switched off say nothing."""
    taken = engine("tensorrt-llm").read_load(replies("tensorrt-llm", "load_idle"), NOW)
    assert (taken.running, taken.capacity_tokens) == (None, None)
    new = engine("tgi").read_load(replies("tgi", "load_new"), NOW)
    assert (new.running, new.waiting) == (None, None)
    for kind in (*TELL_LOAD, "lmstudio"):
        assert engine(kind).read_load((Reply(404, b""),), NOW).running is None


@pytest.mark.parametrize("pieces", [1, 7, 200])
def test_usage_is_read_and_cached_tokens_only_where_they_are_told(kind: str, pieces: int) -> None:
    """Only TensorRT-LLM tells them; with the others there is no number."""
    cached = 32 if kind == "tensorrt-llm" else None
    for case in ("chat", "stream"):
        assert usage_of(engine(kind), *replies(kind, case), pieces=pieces) == Usage(40, 3, cached)


def test_a_stream_adds_up_to_a_message(kind: str) -> None:
    """Its text and its tool calls, and the usage chunk is withheld from who did not ask."""
    (reply,) = replies(kind, "stream")
    message = read_reply(events(reply.body))
    assert message is not None and message["content"] == "Hello there."
    relayed = UsageRelay(relay_usage=False).feed(reply.body)
    assert b'"prompt_tokens"' not in relayed and relayed.endswith(b"data: [DONE]\n\n")
    message = read_reply(events(replies(kind, "tool_call_stream")[0].body))
    assert message is not None
    (call,) = message["tool_calls"]
    assert json.loads(call["function"]["arguments"]) == {"path": "a.txt"}


def test_a_stream_becomes_an_anthropic_message(kind: str) -> None:
    """Anthropic's types take every event of it."""
    for case, block in (("stream", "text"), ("tool_call_stream", "tool_use")):
        (reply,) = replies(kind, case)
        stream = message_of(reply)
        assert [content["type"] for content in stream.message["content"]] == [block]


def test_what_is_added_is_what_the_engine_is_documented_to_take(kind: str) -> None:
    """A strict server refuses a field that it does not know: only TensorRT-LLM is sent one, the
    tenant's salt. Its conversation is named in a header, which an older one leaves aside."""
    adapter = engine(kind)
    ((sent, _),) = exchanges(kind, "stream")
    added = adapter.fields(turn="t", session="s", salt="x")
    assert added.keys() <= sent.keys()
    assert added == ({"cache_salt": "x"} if kind == "tensorrt-llm" else {})
    assert adapter.fields(turn="t", session=None, salt=None) == {}
    named = ((b"x-session-id", b"s"),) if kind == "tensorrt-llm" else ()
    assert tuple(adapter.headers("s")) == named
    for untold in (None, "s\r\nhost: b", "søk"):
        assert tuple(adapter.headers(untold)) == ()


def test_what_they_cannot_do_is_not_asked_of_them(kind: str) -> None:
    """No priority, no abort by id, no count, no saved slot, and no going on from a text."""
    adapter = engine(kind)
    identity = adapter.read_identity(replies(kind, "identity"))
    chat = {"messages": [{"role": "user", "content": "hi"}]}
    assert adapter.order(3, identity) == {}
    assert adapter.release_call("s", identity) is None
    assert adapter.abort_call("t") is None and adapter.count_call(chat) is None
    assert adapter.carry("/v1/chat/completions", chat, "f") is None
    assert adapter.follow_up("/v1/chat/completions", chat, "so far") is None
    assert adapter.feed_calls() == () == adapter.detect_calls()


@pytest.mark.parametrize("kind", ["tensorrt-llm", "tgi", "lmstudio"])
def test_a_prompt_that_does_not_fit_is_told_as_such(kind: str) -> None:
    """Each in its own words."""
    for reply in replies(kind, "too_long"):
        error = engine_error(reply.status, reply.body)
        assert isinstance(error, PromptTooLong) and "9012" in error.message


def test_garbage_is_refused_and_nothing_else_is_raised(kind: str, refuses: Any) -> None:
    """Whichever page of a replica is not what it should be, the replica is refused."""
    refuses(engine(kind), replies(kind, "identity"), replies(kind, "load_idle"))


def test_an_engine_without_a_model_says_how_to_get_one() -> None:
    """An Ollama with nothing pulled and an LM Studio with nothing downloaded are not up."""
    for kind, remedy in (("ollama", "ollama pull"), ("lmstudio", "lms get")):
        with pytest.raises(ReplicaRefused, match=remedy):
            engine(kind).read_identity(replies(kind, "identity_empty"))


def test_an_ollama_whose_context_is_short_is_warned_of() -> None:
    """It cuts longer prompts silently. A model that is not loaded does not tell its context."""
    adapter = engine("ollama")
    short = adapter.read_identity(replies("ollama", "identity_short"))
    assert short.context_tokens == 4096
    assert short.warning is not None and "OLLAMA_CONTEXT_LENGTH" in short.warning
    unloaded = adapter.read_identity(replies("ollama", "identity_unloaded"))
    assert (unloaded.context_tokens, unloaded.warning) == (None, None)


def test_an_ollama_keeps_a_model_for_a_longer_pause_than_its_own() -> None:
    """It would unload it after five minutes; a shorter wish is left out, it would hasten that."""
    adapter = engine("ollama")
    ((sent, reply),) = exchanges("ollama", "hold")
    call = adapter.hold_call("llama3.2:latest", 1800.0)
    assert call is not None and (call.method, call.path) == ("POST", "/api/generate")
    assert json.loads(call.body) == sent and reply.status == 200
    assert adapter.hold_call("llama3.2:latest", 60.0) is None
    for other in set(DOCUMENTED) - {"ollama"}:
        assert engine(other).hold_call("m", 1800.0) is None


def test_an_ollama_says_that_a_model_is_not_there() -> None:
    """As an OpenAI error, which becomes ours."""
    (unknown,) = replies("ollama", "unknown_model")
    assert isinstance(engine_error(unknown.status, unknown.body), ModelNotFound)


def test_an_older_lm_studio_answers_a_path_that_it_lacks_with_200() -> None:
    """Then its models are known, and nothing of how they were loaded."""
    old = replies("lmstudio", "identity_old")
    identity = engine("lmstudio").read_identity(old)
    assert identity.models == ("google/gemma-4-26b-a4b", "deepseek-r1")
    assert identity.context_tokens is None
    assert engine("lmstudio").read_load(old[1:], NOW).slots is None


def test_a_tgi_that_names_no_model_is_refused() -> None:
    """Its /info is where the model comes from."""
    assert engine("tgi").identity_calls() == (Call("GET", "/info"),)
    with pytest.raises(ReplicaRefused, match="model_id"):
        engine("tgi").read_identity((Reply(200, b'{"version": "3.3.6"}'),))
