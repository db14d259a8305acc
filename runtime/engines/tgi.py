"""Hugging Face's Text Generation Inference, by its documentation and source (3.3)."""

from sessile.engines.base import OpenAIShaped, absent, count, document
from sessile.engines.samples import Samples
from sessile.errors import ReplicaRefused
from sessile.router.engine import Call, Identity, Load, Reply

_BATCH = "tgi_batch_current_size"
_QUEUE = "tgi_queue_size"


class TGI(OpenAIShaped):
    """The adapter of `tgi=URL`. It has a prefix cache, and tells nothing of it; a request stops
    when its connection is closed."""

    kind = "tgi"
    embeddings = False

    def identity_calls(self) -> tuple[Call, ...]:
        return (Call("GET", "/info"),)

    def read_identity(self, replies: tuple[Reply, ...]) -> Identity:
        """It serves one model, whatever a request calls it; nothing differs between two starts."""
        info = document(replies[0], "/info")
        model, version = info.get("model_id"), info.get("version")
        if not isinstance(model, str) or not model:
            raise ReplicaRefused("its /info names no model_id")
        return Identity(
            models=(model,),
            context_tokens=count(info.get("max_total_tokens")),
            version=version if isinstance(version, str) else None,
        )

    def health_call(self) -> Call:
        return Call("GET", "/health")

    def load_calls(self) -> tuple[Call, ...]:
        return (Call("GET", "/metrics"),)

    def read_load(self, replies: tuple[Reply, ...], now: float) -> Load:
        """The gauges are there from the first request on."""
        if absent(replies[0]):
            return Load(at=now)
        metrics = Samples(replies[0], "/metrics", (_BATCH, _QUEUE))

        def gauge(name: str) -> int | None:
            total = metrics.total(name)
            return None if total is None else count(total)

        return Load(at=now, running=gauge(_BATCH), waiting=gauge(_QUEUE))
