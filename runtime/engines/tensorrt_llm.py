"""TensorRT-LLM's own server, `trtllm-serve`, by its documentation and source (1.0 to 1.4).

It refuses a body with a field that it does not know, and its fields differ between versions: what
is added must be known to all of them. `/metrics` gives out each iteration's figures once, to
whoever asks first, and nothing while the engine was started without `enable_iter_perf_stats`.
"""

from collections.abc import Mapping
from typing import Any

from sessile.engines.base import OpenAIShaped, absent, array, count, document
from sessile.router.engine import Call, Headers, Identity, Load, Reply


class TensorRTLLM(OpenAIShaped):
    """The adapter of `tensorrt-llm=URL`; closing the connection stops a request within 1 s."""

    kind = "tensorrt-llm"
    embeddings = False

    def identity_calls(self) -> tuple[Call, ...]:
        return (Call("GET", "/v1/models"), Call("GET", "/version"))

    def read_identity(self, replies: tuple[Reply, ...]) -> Identity:
        """Nothing that it tells differs between two starts."""
        models = super().read_identity(replies[:1])
        version = document(replies[1], "/version").get("version")
        return Identity(models=models.models, version=version if isinstance(version, str) else None)

    def health_call(self) -> Call:
        return Call("GET", "/health")

    def load_calls(self) -> tuple[Call, ...]:
        return (Call("GET", "/metrics"),)

    def read_load(self, replies: tuple[Reply, ...], now: float) -> Load:
        """The last iteration's figures. None since the last look: unknown, for it may be idle, or
        another reader was first."""
        if absent(replies[0]):
            return Load(at=now)
        stats = [each for each in array(replies[0], "/metrics") if isinstance(each, dict)]
        if not stats:
            return Load(at=now)
        last = stats[-1]
        told = last.get("kvCacheStats")
        kv: dict[str, Any] = told if isinstance(told, dict) else {}
        size = count(kv.get("tokensPerBlock"))

        def tokens(name: str) -> int | None:
            blocks = count(kv.get(name))
            return None if blocks is None or size is None else blocks * size

        return Load(
            at=now,
            running=count(last.get("numActiveRequests")),
            waiting=count(last.get("numQueuedRequests")),
            used_tokens=tokens("usedNumBlocks"),
            capacity_tokens=tokens("maxNumBlocks"),
            slots=count(last.get("maxNumActiveRequests")),
        )

    def fields(self, *, turn: str, session: str | None, salt: str | None) -> Mapping[str, Any]:
        return {} if salt is None else {"cache_salt": salt}

    def headers(self, session: str | None) -> Headers:
        """Its conversation id, which keeps a session on one attention rank. The field for it was in
        `disaggregated_params` once, is `conversation_params` now, and is refused by the others; the
        header is left aside by those that do not know it. A session that is not plain ASCII is not
        told."""
        if session is None or not session.isascii() or not session.isprintable():
            return ()
        return ((b"x-session-id", session.encode()),)
