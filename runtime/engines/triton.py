"""Triton's OpenAI front end, before TensorRT-LLM or another backend, by its source (2026).

It refuses a body with a field that it does not know, so nothing is added to one. Its `/metrics`
are the whole server's: the TensorRT-LLM backend tells its load there, others do not.
"""

from sessile.engines.base import OpenAIShaped, absent, count
from sessile.engines.samples import Samples
from sessile.errors import ReplicaUnreachable
from sessile.router.engine import Call, Load, Reply

_REQUESTS = "nv_trt_llm_request_metrics"
_BLOCKS = "nv_trt_llm_kv_cache_block_metrics"


class Triton(OpenAIShaped):
    """The adapter of `triton=URL`."""

    kind = "triton"

    def health_call(self) -> Call:
        return Call("GET", "/health/ready")

    def read_health(self, reply: Reply) -> None:
        if reply.status != 200:
            raise ReplicaUnreachable(f"its /health/ready answered {reply.status}")

    def load_calls(self) -> tuple[Call, ...]:
        return (Call("GET", "/metrics"),)

    def read_load(self, replies: tuple[Reply, ...], now: float) -> Load:
        if absent(replies[0]):
            return Load(at=now)
        metrics = Samples(replies[0], "/metrics", (_REQUESTS, _BLOCKS))

        def total(name: str, label: str, kind: str) -> int | None:
            found = [s.value for s in metrics.all(name) if s.labels.get(label) == kind]
            return count(sum(found)) if found else None

        size = {s.value for s in metrics.all(_BLOCKS)
                if s.labels.get("kv_cache_block_type") == "tokens_per"}  # fmt: skip
        per_block = count(size.pop()) if len(size) == 1 else None

        def tokens(kind: str) -> int | None:
            blocks = total(_BLOCKS, "kv_cache_block_type", kind)
            return None if blocks is None or per_block is None else blocks * per_block

        return Load(
            at=now,
            running=total(_REQUESTS, "request_type", "scheduled"),
            waiting=total(_REQUESTS, "request_type", "waiting"),
            used_tokens=tokens("used"),
            capacity_tokens=tokens("max"),
            slots=total(_REQUESTS, "request_type", "max"),
        )
