"""vLLM's OpenAI server."""

from collections.abc import Mapping
from typing import Any

from sessile.engines.base import OpenAIShaped, document, samples
from sessile.router.replica import Call, Identity, Load, Reply


class VLLM(OpenAIShaped):
    """The adapter of `vllm=URL`; closing the connection aborts a request there."""

    kind = "vllm"

    def identity_calls(self) -> tuple[Call, ...]:
        return (Call("GET", "/v1/models"), Call("GET", "/version"), Call("GET", "/metrics"))

    def read_identity(self, replies: tuple[Reply, ...]) -> Identity:
        models = super().read_identity(replies[:1])
        started = samples(replies[2], "/metrics").get("process_start_time_seconds")
        return Identity(
            models=models.models,
            context_tokens=models.context_tokens,
            version=document(replies[1], "/version").get("version"),
            incarnation=None if started is None else str(started),
        )

    def health_call(self) -> Call:
        return Call("GET", "/health")

    def load_calls(self) -> tuple[Call, ...]:
        return (Call("GET", "/metrics"),)

    def read_load(self, replies: tuple[Reply, ...], now: float) -> Load:
        found = samples(replies[0], "/metrics")
        return Load(
            at=now,
            running=int(found.get("vllm:num_requests_running", 0)),
            waiting=int(found.get("vllm:num_requests_waiting", 0)),
        )

    def fields(self, *, turn: str, session: str | None, salt: str | None) -> Mapping[str, Any]:
        fields: dict[str, Any] = {"request_id": turn}
        if session is not None:
            fields["session_id"] = session
        if salt is not None:
            fields["cache_salt"] = salt
        return fields
