"""Which adapter speaks to which engine, and what all OpenAI-shaped engines share."""

from collections.abc import Mapping
from typing import Any

import msgspec

from sessile.errors import InvalidRequest, ReplicaRefused
from sessile.router.replica import Call, Engine, Identity, Load, Reply, Usage


class OpenAIShaped:
    """The parts of an adapter that need nothing but OpenAI's own API. Stateless."""

    kind = "openai"
    embeddings = True

    def identity_calls(self) -> tuple[Call, ...]:
        return (Call("GET", "/v1/models"),)

    def read_identity(self, replies: tuple[Reply, ...]) -> Identity:
        listed = document(replies[0], "/v1/models").get("data")
        if not isinstance(listed, list):
            raise ReplicaRefused("its /v1/models is not a list of models")
        names = tuple(m["id"] for m in listed if isinstance(m, dict) and isinstance(m["id"], str))
        lengths = [m.get("max_model_len") for m in listed if isinstance(m, dict)]
        known = [length for length in lengths if isinstance(length, int)]
        return Identity(models=names, context_tokens=min(known, default=None))

    def health_call(self) -> Call:
        return Call("GET", "/v1/models")

    def load_calls(self) -> tuple[Call, ...]:
        return ()

    def read_load(self, replies: tuple[Reply, ...], now: float) -> Load:
        return Load(at=now)

    def fields(self, *, turn: str, session: str | None, salt: str | None) -> Mapping[str, Any]:
        return {}

    def read_usage(self, usage: Mapping[str, Any], body: Mapping[str, Any]) -> Usage:
        details = usage.get("prompt_tokens_details")
        cached = details.get("cached_tokens") if isinstance(details, Mapping) else None
        return Usage(
            count(usage.get("prompt_tokens")), count(usage.get("completion_tokens")), count(cached)
        )

    def abort_call(self, turn: str) -> Call | None:
        return None


def engine(kind: str) -> Engine:
    """The adapter of that kind; raises `InvalidRequest` naming those there are."""
    from sessile.engines.llamacpp import LlamaCpp
    from sessile.engines.openai import OpenAI
    from sessile.engines.sglang import SGLang
    from sessile.engines.vllm import VLLM

    kinds: dict[str, Engine] = {e.kind: e for e in (SGLang(), VLLM(), LlamaCpp(), OpenAI())}
    try:
        return kinds[kind]
    except KeyError:
        known = ", ".join(kinds)
        raise InvalidRequest(f"{kind!r} is not an engine; there are: {known}") from None


def document(reply: Reply, path: str) -> dict[str, Any]:
    """A reply's JSON object; raises `ReplicaRefused` saying what came instead."""
    if reply.status != 200:
        raise ReplicaRefused(f"its {path} answered {reply.status}")
    try:
        body = msgspec.json.decode(reply.body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ReplicaRefused(f"its {path} is not JSON") from error
    if not isinstance(body, dict):
        raise ReplicaRefused(f"its {path} is not a JSON object")
    return body


def count(value: object) -> int | None:
    """A token count, or None for anything that is not one."""
    return value if isinstance(value, int) and value >= 0 else None


def samples(reply: Reply, path: str) -> dict[str, float]:
    """The values of a Prometheus text page by metric name, summed over labels."""
    if reply.status != 200:
        raise ReplicaRefused(f"its {path} answered {reply.status}")
    found: dict[str, float] = {}
    for line in reply.body.decode("utf-8", "replace").splitlines():
        if not line or line.startswith("#"):
            continue
        name, _, value = line.rpartition(" ")
        name = name.partition("{")[0]
        try:
            found[name] = found.get(name, 0.0) + float(value)
        except ValueError as error:
            raise ReplicaRefused(f"its {path} is not Prometheus text") from error
    return found
