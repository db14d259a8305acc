"""What engines tell of speculation: on what a real llama.cpp answered, and on SGLang's and vLLM's
own shapes, read from their sources (0.5.23, 0.32): neither speculates on a CPU."""

import json

import pytest

from sessile.engines.kinds import engine
from sessile.relay import UsageRelay
from sessile.router.engine import Reply

USAGE = {"prompt_tokens": 61, "completion_tokens": 60, "total_tokens": 121}
TIMINGS = {  # of xllamacpp 2026.10 with n-grams
    "cache_n": 0, "prompt_n": 61, "prompt_ms": 4962.342, "predicted_n": 60,
    "predicted_ms": 7177.35, "draft_n": 8, "draft_n_accepted": 6,
}  # fmt: skip
DETAILS = {"spec_accept_rate": 0.4, "spec_accept_length": 2.5, "spec_verify_ct": 40}


def replied(body: object, status: int = 200) -> Reply:
    """An answer of JSON, or of text."""
    return Reply(status, (body if isinstance(body, str) else json.dumps(body)).encode())


def test_llama_cpp_tells_it_in_its_timings() -> None:
    """60 tokens, 6 of them from drafts: 54 steps. Without a draft nothing is said: a token each."""
    read = engine("llamacpp").read_usage
    assert read(USAGE, {"timings": TIMINGS}).acceptance_length == pytest.approx(60 / 54)
    plain = {"predicted_n": 60, "cache_n": 0}
    assert read(USAGE, {"timings": plain}).acceptance_length == 1.0
    assert read(USAGE, {}).acceptance_length is None
    broken = {**TIMINGS, "draft_n_accepted": 60}
    assert read(USAGE, {"timings": broken}).acceptance_length is None


def test_llama_cpp_tells_in_its_slots_that_it_speculates() -> None:
    """Its properties say "none" of one that does."""
    models = replied({"data": [{"id": "m"}]})
    for slots, told in (
        (replied([{"id": 0, "speculative": True}]), True),
        (replied([{"id": 0, "speculative": False}]), False),
        (replied([{"id": 0}]), None),
        (replied("", 501), None),
    ):
        identity = engine("llamacpp").read_identity((models, replied({}), slots))
        assert identity.speculates is told


@pytest.mark.parametrize("own", [False, True])
def test_sglang_tells_it_in_an_event_that_only_who_asked_sees(own: bool) -> None:
    """The event comes before the usage; a client that did not ask for it is not given it."""
    body = {"id": "x", "choices": [], "sglext": {"spec_tokens_details": DETAILS}, "usage": None}
    events = [{"id": "x", "choices": [{"delta": {"content": "a"}}]}, body]
    stream = b"".join(b"data: " + json.dumps(e).encode() + b"\n\n" for e in events)
    last = b"data: " + json.dumps({"id": "x", "choices": [], "usage": USAGE}).encode() + b"\n\n"
    relay = UsageRelay(relay_usage=False, steps=True, details=not own)
    passed = relay.feed(stream) + relay.feed(last + b"data: [DONE]\n\n")
    assert (b"spec_tokens_details" in passed) is own
    assert b'"a"' in passed and b"[DONE]" in passed and b"total_tokens" not in passed
    assert relay.events == 4
    if not own:
        assert relay.usage_body is not None
        read = engine("sglang").read_usage(relay.usage_body["usage"], relay.usage_body)
        assert read.acceptance_length == 2.5


def test_sglang_tells_by_its_settings_that_it_speculates() -> None:
    """And how much was accepted since it started, by rank; an older one says nothing."""
    models = replied({"data": [{"id": "m"}]})
    info = {
        "speculative_algorithm": "NGRAM",
        "internal_states": [{"avg_spec_accept_length": 2.0}, {"avg_spec_accept_length": 3.0}, {}],
    }
    identity = engine("sglang").read_identity((models, replied(info)))
    assert identity.speculates is True and identity.acceptance_length == 2.5
    identity = engine("sglang").read_identity((models, replied({"speculative_algorithm": None})))
    assert identity.speculates is False and identity.acceptance_length is None
    assert engine("sglang").read_identity((models, replied({}))).speculates is None


def test_vllm_tells_by_its_counters() -> None:
    """They are there only where it speculates; each draft made its accepted tokens and one."""
    models, version = replied({"data": [{"id": "m"}]}), replied({"version": "0.32.0"})
    page = (
        "# TYPE vllm:spec_decode_num_drafts_total counter\n"
        'vllm:spec_decode_num_drafts_total{engine="0"} 10\n'
        'vllm:spec_decode_num_accepted_tokens_total{engine="0"} 15\n'
    )
    identity = engine("vllm").read_identity((models, version, replied(page)))
    assert identity.speculates is True and identity.acceptance_length == 2.5
    identity = engine("vllm").read_identity((models, version, replied("# nothing\n")))
    assert identity.speculates is False and identity.acceptance_length is None
