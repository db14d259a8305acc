"""How engines load LoRA adapters, tell of them and refuse them, on what real ones answered."""

import json
from typing import Any

import pytest

from recorded_engines import recorded, replies
from sessile.engines.kinds import engine
from sessile.errors import NotSupported, ReplicaRefused
from sessile.router.adapters import Adapter
from sessile.router.engine import Call, Reply

LOADING = ["sglang", "vllm"]
ONE = Adapter(name="one", base="smollm2", path="/adapters/one")


def same(call: Call, sent: dict[str, Any]) -> bool:
    """Whether the call is the one that was recorded."""
    return (call.method, call.path, json.loads(call.body)) == (
        sent["method"], sent["path"], sent["sent"],
    )  # fmt: skip


@pytest.mark.parametrize("kind", LOADING)
def test_an_adapter_is_loaded_and_let_go_of(kind: str) -> None:
    """The calls are those that the engine took, and its answers read as that."""
    adapter = engine(kind)
    assert adapter.loads_adapters
    assert same(adapter.adapter_call(ONE), recorded(kind, "adapter_load")["exchanges"][0])
    assert same(adapter.drop_adapter_call("one"), recorded(kind, "adapter_unload")["exchanges"][0])
    for reply in (*replies(kind, "adapter_load"), *replies(kind, "adapter_unload")):
        adapter.read_adapter(reply)


@pytest.mark.parametrize(
    ("kind", "case", "words"),
    [
        ("vllm", "adapter_too_big", "LoRA rank 64 is greater than max_lora_rank 16"),
        ("vllm", "adapter_missing", "Loading lora none failed: No adapter found"),
        ("vllm", "adapter_load_again", "has already been loaded"),
        ("vllm", "adapter_unload_again", "cannot be found"),
        ("sglang", "adapter_too_big", "rank 64 is incompatible with .*--max-lora-rank"),
        ("sglang", "adapter_missing", "Repo id must be in the form"),
        ("sglang", "adapter_load_again", "it is already loaded"),
        ("sglang", "adapter_unload_again", "LoRA with name one does not exist"),
    ],
)
def test_a_refusal_is_told_in_the_words_of_the_engine(kind: str, case: str, words: str) -> None:
    """Whoever declared the adapter reads what is wrong with it."""
    (reply,) = replies(kind, case)
    with pytest.raises(ReplicaRefused, match=words):
        engine(kind).read_adapter(reply)


def test_a_vllm_that_loads_none_names_its_flags() -> None:
    """Its route is not there: the remedy is told instead of a bare 404."""
    with pytest.raises(ReplicaRefused, match="--enable-lora.*VLLM_ALLOW_RUNTIME_LORA_UPDATING=1"):
        engine("vllm").read_adapter(Reply(404, b'{"detail":"Not Found"}'))
    for reply in (Reply(500, b"oops"), Reply(400, b"[]"), Reply(400, b'{"error":"no"}')):
        with pytest.raises(ReplicaRefused, match="it answered"):
            engine("vllm").read_adapter(reply)


@pytest.mark.parametrize("kind", LOADING)
def test_a_replica_tells_its_adapters_apart_from_its_models(kind: str) -> None:
    """What has a parent is an adapter of it; how many fit is told, by vLLM once one has run."""
    identity = engine(kind).read_identity(replies(kind, "adapter_identity"))
    assert identity.models == ("smollm2",)
    assert [(a.name, a.base) for a in identity.adapters] == [("one", "smollm2"), ("two", "smollm2")]
    assert identity.most_adapters == 2
    before = engine(kind).read_identity(replies(kind, "identity"))
    assert (before.adapters, before.most_adapters) == ((), None)


@pytest.mark.parametrize("kind", LOADING)
def test_a_turn_runs_with_its_adapter(kind: str) -> None:
    """The same prompt is answered otherwise by each, and nothing of the base's cache counts."""
    base, *adapted = recorded(kind, "adapter_turns")["exchanges"]
    said = [e["json"]["choices"][0]["message"]["content"] for e in (base, *adapted)]
    assert len(set(said)) == 3
    for turn, name in zip(adapted, ("one", "two"), strict=True):
        asked = {"model": name, **engine(kind).adapter_fields(name)}
        assert asked.items() <= turn["sent"].items()
        assert turn["json"]["model"] == name
        assert turn["json"]["usage"]["prompt_tokens_details"]["cached_tokens"] == 0


@pytest.mark.parametrize("kind", ["llamacpp", "openai"])
def test_other_engines_refuse_by_name(kind: str) -> None:
    """llama.cpp takes adapters at its start alone, an unknown server none that we know of."""
    assert not engine(kind).loads_adapters
    with pytest.raises(NotSupported, match=f"{kind} loads no adapters while it runs"):
        engine(kind).adapter_call(ONE)
    with pytest.raises(NotSupported, match=f"{kind} unloads no adapters"):
        engine(kind).drop_adapter_call("one")
