"""llama.cpp's HTTP server: slots are its unit of load, its timings the evidence of a cache hit."""

from collections.abc import Mapping
from typing import Any

from sessile.engines.base import OpenAIShaped, count, document, samples
from sessile.router.replica import Call, Identity, Load, Reply, Usage


class LlamaCpp(OpenAIShaped):
    """The adapter of `llamacpp=URL`, and of the embedded replicas."""

    kind = "llamacpp"
    embeddings = False

    def identity_calls(self) -> tuple[Call, ...]:
        return (Call("GET", "/v1/models"), Call("GET", "/props"))

    def read_identity(self, replies: tuple[Reply, ...]) -> Identity:
        models = super().read_identity(replies[:1]).models
        props = document(replies[1], "/props")
        settings = props.get("default_generation_settings") or {}
        return Identity(
            models=models,
            context_tokens=count(settings.get("n_ctx")),
            version=props.get("build_info"),
        )

    def health_call(self) -> Call:
        return Call("GET", "/health")

    def load_calls(self) -> tuple[Call, ...]:
        return (Call("GET", "/metrics"), Call("GET", "/props"))

    def read_load(self, replies: tuple[Reply, ...], now: float) -> Load:
        found = samples(replies[0], "/metrics")
        props = document(replies[1], "/props")
        return Load(
            at=now,
            running=int(found.get("llamacpp:requests_processing", 0)),
            waiting=int(found.get("llamacpp:requests_deferred", 0)),
            slots=count(props.get("total_slots")),
        )

    def read_usage(self, usage: Mapping[str, Any], body: Mapping[str, Any]) -> Usage:
        read = super().read_usage(usage, body)
        timings = body.get("timings")
        if read.cached_tokens is None and isinstance(timings, Mapping):
            return Usage(read.prompt_tokens, read.completion_tokens, count(timings.get("cache_n")))
        return read
