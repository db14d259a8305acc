"""LM Studio's server, by its documentation (0.4).

It answers a path that it does not have with 200 and an error in the body; an older one has no
`/api/v1`, and tells its models only.
"""

from typing import Any

from sessile.engines.base import OpenAIShaped, absent, count, document
from sessile.errors import ReplicaRefused
from sessile.router.engine import Call, Identity, Load, Reply

UNKNOWN_PATH = "Unexpected endpoint or method"
"""How its answer to an unknown path begins."""


class LMStudio(OpenAIShaped):
    """The adapter of `lmstudio=URL`; it tells no load and no cached tokens, and a request stops
    when its connection is closed."""

    kind = "lmstudio"
    fetch_command: str | None = "lms get"

    def identity_calls(self) -> tuple[Call, ...]:
        return (Call("GET", "/v1/models"), Call("GET", "/api/v1/models"))

    def read_identity(self, replies: tuple[Reply, ...]) -> Identity:
        """All models that a request may name: the downloaded ones while models are loaded on
        demand, else those that are loaded. The context is that of the loaded ones."""
        listed = document(replies[0], "/v1/models").get("data")
        if listed == []:
            raise ReplicaRefused("no model is there: run `lms get MODEL`, then `lms load MODEL`")
        models = super().read_identity(replies[:1]).models
        known = [n for c in _configs(replies[1]) if (n := count(c.get("context_length")))]
        return Identity(models=models, context_tokens=min(known, default=None))

    def load_calls(self) -> tuple[Call, ...]:
        return (Call("GET", "/api/v1/models"),)

    def read_load(self, replies: tuple[Reply, ...], now: float) -> Load:
        """Only how many requests the loaded models run at once."""
        told = [n for c in _configs(replies[0]) if (n := count(c.get("parallel")))]
        return Load(at=now, slots=sum(told) if told else None)


def _configs(reply: Reply) -> list[dict[str, Any]]:
    """How each loaded instance of a language model was loaded."""
    if absent(reply):
        return []
    told = document(reply, "/api/v1/models")
    if str(told.get("error", "")).startswith(UNKNOWN_PATH):
        return []
    models = told.get("models")
    if not isinstance(models, list):
        raise ReplicaRefused("its /api/v1/models is not a list of models")
    instances = [
        instance
        for model in models
        if isinstance(model, dict) and model.get("type") == "llm"
        for instance in model.get("loaded_instances") or []
        if isinstance(instance, dict)
    ]
    return [c for instance in instances if isinstance(c := instance.get("config"), dict)]
