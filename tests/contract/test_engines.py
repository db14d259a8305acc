"""What every adapter reads of a replica itself, on what real engines answered: who it is, whether
it is ready, what it has to do. `record.py` says what was recorded, and records it anew."""

from typing import Any, get_args

import pytest

from recorded_engines import KINDS, NOW, replies
from sessile.engines.kinds import engine, engines
from sessile.errors import InvalidRequest, ReplicaRefused, ReplicaUnreachable
from sessile.pool_settings import EngineKind
from sessile.router.engine import Reply


def test_there_is_an_adapter_of_each_kind_and_of_no_other() -> None:
    """The adapter is found by its kind, always the same one; a wrong kind names the right ones."""
    assert set(engines()) == {*get_args(EngineKind)} >= set(KINDS)
    assert all(engine(kind) is engine(kind) and engine(kind).kind == kind for kind in engines())
    with pytest.raises(InvalidRequest, match="'sgl' is not an engine; there are: sglang, vllm"):
        engine("sgl")


def test_a_replica_says_what_it_serves(kind: str) -> None:
    """Models, context and version come from the engine's own pages."""
    identity = engine(kind).read_identity(replies(kind, "identity"))
    assert identity.models == ("smollm2",)
    told = {"sglang": (8192, "0.5.23"), "vllm": (4096, "0.32.0"), "llamacpp": (8192, None)}
    assert (identity.context_tokens, identity.version) == told.get(kind, (None, None))


def test_the_incarnation_is_one_for_all_who_ask_and_another_after_a_restart(kind: str) -> None:
    """Two routers read the same incarnation, and a restart changes it; or there is none."""
    adapter = engine(kind)
    first, again = (adapter.read_identity(replies(kind, "identity")) for _ in range(2))
    assert first.incarnation == again.incarnation
    if kind == "openai":
        assert first.incarnation is None
    else:
        restarted = adapter.read_identity(replies(kind, "identity_restarted"))
        assert restarted.models == first.models
        assert None not in (first.incarnation, restarted.incarnation)
        assert first.incarnation != restarted.incarnation


def test_a_ready_replica_is_told_from_one_that_loads_or_leaves(kind: str) -> None:
    """The recorded health is one of a ready replica; 503 is one that takes no requests."""
    adapter = engine(kind)
    adapter.read_health(*replies(kind, "health"))
    with pytest.raises(ReplicaUnreachable, match="answered 503"):
        adapter.read_health(Reply(503, b""))


def test_an_sglang_without_a_readiness_page_is_taken_as_ready() -> None:
    """An older SGLang answers 404 to /ready; its identity then says whether it is up."""
    engine("sglang").read_health(Reply(404, b'{"detail":"Not Found"}'))


def test_load_follows_what_runs(kind: str) -> None:
    """Idle, one request running, and after its client hung up; unknown is never zero."""
    adapter = engine(kind)
    idle, busy, after = (
        adapter.read_load(replies(kind, f"load_{when}"), NOW)
        for when in ("idle", "busy", "after_hangup")
    )
    assert idle.at == busy.at == NOW
    if kind == "openai":
        assert (idle.running, idle.waiting, busy.running, after.running) == (None,) * 4
        return
    assert [(load.running, load.waiting) for load in (idle, busy, after)] == [
        (0, 0),
        (1, 0),
        (0, 0),
    ]
    if kind == "llamacpp":
        assert (busy.slots, busy.capacity_tokens) == (2, None)
    else:
        assert busy.capacity_tokens is not None and busy.used_tokens is not None
        assert 0 < busy.used_tokens < busy.capacity_tokens


@pytest.mark.parametrize("folder", ["llamacpp", "llama-server"])
def test_llama_cpp_s_load_tells_that_something_is_computed(folder: str) -> None:
    """By the tokens that its slots have read and made. The others tell it by the memory that is in
    use."""
    adapter = engine("llamacpp")
    idle, busy = (
        adapter.read_load(replies(folder, f"load_{when}"), NOW) for when in ("idle", "busy")
    )
    assert (idle.computed, busy.computed) == (0, 3)


def test_load_pages_that_are_switched_off_leave_the_load_unknown() -> None:
    """llama.cpp serves /metrics and /slots only if told to, and old SGLangs have no /v1/loads."""
    off = Reply(501, b'{"error":{"code":501,"message":"This server does not support it."}}')
    slots, metrics = replies("llamacpp", "load_busy")
    adapter = engine("llamacpp")
    assert adapter.read_load((off, off), NOW).running is None
    only_slots = adapter.read_load((slots, off), NOW)
    assert (only_slots.running, only_slots.waiting, only_slots.slots) == (1, None, 2)
    only_metrics = adapter.read_load((off, metrics), NOW)
    assert (only_metrics.running, only_metrics.waiting, only_metrics.slots) == (1, 0, None)
    assert engine("sglang").read_load((Reply(404, b""),), NOW).running is None


def test_a_sleeping_vllm_is_refused() -> None:
    """vLLM put to sleep calls itself healthy and lets requests hang; its metrics tell."""
    awake = b'sleep_state="awake"} 1.0'
    metrics = replies("vllm", "load_idle")[0]
    assert awake in metrics.body
    asleep = Reply(200, metrics.body.replace(awake, b'sleep_state="awake"} 0.0'))
    models, version, _ = replies("vllm", "identity")
    with pytest.raises(ReplicaRefused, match="put to sleep"):
        engine("vllm").read_load((asleep,), NOW)
    with pytest.raises(ReplicaRefused, match="put to sleep"):
        engine("vllm").read_identity((models, version, asleep))


def test_garbage_is_refused_and_nothing_else_is_raised(kind: str, refuses: Any) -> None:
    """Whichever page of a replica is not what it should be, the replica is refused."""
    refuses(engine(kind), replies(kind, "identity"), replies(kind, "load_idle"))


@pytest.mark.parametrize(
    "listed",
    [b"{}", b'{"data": 3}', b'{"data": []}', b'{"data": [{"id": 7}, "smollm2", {}]}'],
)
def test_a_list_of_models_that_names_none_is_refused(kind: str, listed: bytes) -> None:
    """A replica that serves no model that can be asked for is not up."""
    others = replies(kind, "identity")[1:]
    with pytest.raises(ReplicaRefused, match="/v1/models"):
        engine(kind).read_identity((Reply(200, listed), *others))
