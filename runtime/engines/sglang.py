"""SGLang's HTTP server."""

from collections.abc import Mapping
from typing import Any

import msgspec

from sessile.engines.base import OpenAIShaped, count, document
from sessile.router.replica import Call, Identity, Load, Reply


class SGLang(OpenAIShaped):
    """The adapter of `sglang=URL`."""

    kind = "sglang"

    def identity_calls(self) -> tuple[Call, ...]:
        return (Call("GET", "/v1/models"), Call("GET", "/server_info"))

    def read_identity(self, replies: tuple[Reply, ...]) -> Identity:
        models = super().read_identity(replies[:1])
        info = document(replies[1], "/server_info")
        seed = info.get("random_seed")
        return Identity(
            models=models.models,
            context_tokens=models.context_tokens or count(info.get("context_length")),
            version=info.get("version"),
            incarnation=None if seed is None else str(seed),
        )

    def health_call(self) -> Call:
        return Call("GET", "/model_info")

    def load_calls(self) -> tuple[Call, ...]:
        return (Call("GET", "/v1/loads"),)

    def read_load(self, replies: tuple[Reply, ...], now: float) -> Load:
        loads = [x for x in document(replies[0], "/v1/loads").get("loads") or [{}]]

        def total(name: str) -> int | None:
            values = [count(x.get(name)) for x in loads]
            known = [v for v in values if v is not None]
            return sum(known) if known else None

        return Load(
            at=now,
            running=total("num_running_reqs"),
            waiting=total("num_waiting_reqs"),
            used_tokens=total("num_used_tokens"),
            capacity_tokens=total("max_total_num_tokens"),
            slots=total("max_running_requests"),
        )

    def fields(self, *, turn: str, session: str | None, salt: str | None) -> Mapping[str, Any]:
        fields: dict[str, Any] = {"rid": turn}
        if session is not None:
            fields["session_id"] = session
        if salt is not None:
            fields["cache_salt"] = salt
        return fields

    def abort_call(self, turn: str) -> Call | None:
        return Call("POST", "/abort_request", msgspec.json.encode({"rid": turn}))
