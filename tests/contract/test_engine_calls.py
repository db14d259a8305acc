"""What the router asks of real engines, within a turn and beside it: each took it."""

import contextlib
import json
from typing import Any

import pytest

from recorded_engines import KINDS, exchanges, replies, started_with
from sessile.engines.kinds import engine
from sessile.errors import ReplicaRefused
from sessile.relay import events
from sessile.router.engine import Call, Reply, Steps

COUNTING = ["sglang", "llamacpp"]  # those whose counts were recorded


@pytest.mark.parametrize("kind", COUNTING)
def test_a_count_is_what_a_turn_takes(kind: str) -> None:
    """The adapter's call was answered with the very number that a completion then reported."""
    (counted, turn) = exchanges(kind, "count")
    call = engine(kind).count_call(counted.sent)
    assert call is not None and json.loads(call.body) == counted.sent
    used = json.loads(turn.reply.body)["usage"]["prompt_tokens"]
    assert engine(kind).read_count(counted.reply) == used > 200


def test_what_a_tokenizer_would_not_count_exactly_is_not_asked_of_it(kind: str) -> None:
    """Images, and an effort that a template may render, are counted by a turn; llama.cpp renders
    both. A replica without the call, or one that answers nonsense, gives no count."""
    adapter = engine(kind)
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    hello = {"role": "user", "content": "Say hello."}
    for asked in (
        {"messages": [{"role": "user", "content": [image]}]},
        {"messages": [hello], "reasoning_effort": "low"},
    ):
        assert (adapter.count_call({"model": "m", **asked}) is None) is (kind != "llamacpp")
    call = adapter.count_call({"model": "m", "messages": [hello], "max_tokens": 9})
    assert (call is None) is (kind == "openai")
    assert adapter.read_count(Reply(404, b"")) is None
    assert adapter.read_count(Reply(200, b'{"count": 7}')) == 7
    with pytest.raises(ReplicaRefused):
        adapter.read_count(Reply(200, b'{"count": "many"}'))


def test_the_fields_that_are_added_were_taken(kind: str) -> None:
    """Chat, completions, several choices and tool calls were answered with the fields in them."""
    adapter = engine(kind)
    for case in ("chat", "stream", "completion", "two_choices_stream", "tool_call_stream"):
        ((sent, reply),) = exchanges(kind, case)
        assert reply.status == 200
        added = adapter.fields(turn="t", session="s", salt="x").keys()
        assert added <= sent.keys()
    assert ("cache_salt" in added) is (kind in ("sglang", "vllm"))
    assert adapter.fields(turn="t", session=None, salt=None).keys() <= added


def test_a_chosen_request_id_comes_back() -> None:
    """SGLang answers under the turn's id, vLLM under it with a prefix."""
    for kind, field, prefix in (("sglang", "rid", ""), ("vllm", "request_id", "chatcmpl-")):
        ((sent, reply),) = exchanges(kind, "chat")
        assert json.loads(reply.body)["id"] == prefix + sent[field]


def test_abort_names_the_turn_or_is_left_to_the_connection(kind: str) -> None:
    """SGLang is told, by the turn's id; the others stop when the connection closes."""
    call = engine(kind).abort_call("turn_9")
    if kind != "sglang":
        assert call is None
        return
    assert call == Call("POST", "/abort_request", b'{"rid":"turn_9"}')
    (asked, aborted) = exchanges(kind, "abort")
    assert asked.reply.status == 200 and asked.sent["rid"] == aborted.sent["rid"]
    finished = [c["finish_reason"] for e in events(aborted.reply.body) for c in e["choices"]]
    assert finished[-1] == "abort"
    assert aborted.reply.body.endswith(b"data: [DONE]\n\n")


def test_only_an_sglang_that_was_started_to_hold_sessions_is_told_to_release_them(
    kind: str,
) -> None:
    """Its own page says whether it does; by default no engine does."""
    adapter = engine(kind)
    identity = adapter.read_identity(replies(kind, "identity"))
    assert not identity.holds_sessions and adapter.release_call("s", identity) is None
    assert identity.names_sessions is (kind == "sglang")
    if kind == "sglang":
        assert not adapter.read_identity(started_with(kv_events=None)).names_sessions
        holding = adapter.read_identity(started_with(enable_session_radix_cache=True))
        call = adapter.release_call("team/s", holding)
        assert call is not None and call.path == "/close_session"
        assert json.loads(call.body) == {"session_id": "team/s"}


@pytest.mark.parametrize(("low_first", "sent"), [(False, -3), (True, 3)])
def test_a_priority_is_sent_where_it_orders(kind: str, low_first: bool, sent: int) -> None:
    """0 is the most urgent whichever way the replica counts; nobody else is sent one."""
    adapter = engine(kind)
    found = adapter.order(3, adapter.read_identity(replies(kind, "identity")))
    assert found == ({"priority": 3} if kind == "vllm" else {})
    if kind == "sglang":
        ordering = adapter.read_identity(
            started_with(
                enable_priority_scheduling=True, schedule_low_priority_values_first=low_first
            )
        )
        assert adapter.order(3, ordering) == {"priority": sent}


@pytest.mark.parametrize("version", ["0.31.1", "0.9", "dev", None])
def test_a_vllm_that_may_refuse_a_priority_is_sent_none(version: str | None) -> None:
    """Or that does not say which it is."""
    models, _, metrics = replies("vllm", "identity")
    told = (models, Reply(200, json.dumps({"version": version}).encode()), metrics)
    assert engine("vllm").order(3, engine("vllm").read_identity(told)) == {}


def test_llama_cpp_carries_a_prompt_from_slot_to_slot() -> None:
    """It is saved from the slot that it is found in, and restored where nothing is lost by it."""
    chat = {"messages": [{"role": "user", "content": "hi"}]}
    steps = engine("llamacpp").carry("/v1/chat/completions", chat, "s.kv")
    assert steps is not None
    save, restore = (
        walk(each, {"/apply-template": {"prompt": "<hi>"}, "/completion": {"id_slot": 1}})
        for each in steps
    )
    assert save == [
        ("/apply-template", chat),
        ("/completion", {"prompt": "<hi>", "n_predict": 0}),
        ("/slots/1?action=save", {"filename": "s.kv"}),
    ]
    assert [path for path, _ in restore] == ["/completion", "/slots/1?action=restore"]
    assert restore[-1][1] == {"filename": "s.kv"}
    for others in set(KINDS) - {"llamacpp"}:
        assert engine(others).carry("/v1/chat/completions", chat, "s.kv") is None


@pytest.mark.parametrize(
    "told", [{"/apply-template": {}}, {"/apply-template": {"prompt": "p"}, "/completion": {}}]
)
def test_what_llama_cpp_does_not_say_ends_the_carrying(told: dict[str, Any]) -> None:
    """No prompt, or no slot: there is nothing to save."""
    steps = engine("llamacpp").carry("/v1/chat/completions", {"messages": []}, "s.kv")
    assert steps is not None
    with pytest.raises(ReplicaRefused):
        walk(steps[0], told)


def walk(steps: Steps, told: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """The calls, each answered by what is told of its path."""
    made = []
    with contextlib.suppress(StopIteration):
        call = next(steps)
        while True:
            made.append((call.path, json.loads(call.body)))
            call = steps.send(Reply(200, json.dumps(told.get(call.path, {})).encode()))
    return made
