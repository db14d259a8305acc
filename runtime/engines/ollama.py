"""Ollama, by its documentation and source (2026).

It loads a model at its first request and unloads it when idle, five minutes later unless told
otherwise. A prompt that does not fit the context that a model was loaded with is cut at its
beginning, silently: the answer is poor, and nothing of the cache is hit.
"""

from typing import Any

import msgspec

from sessile.engines.base import OpenAIShaped, count, document
from sessile.errors import ReplicaRefused
from sessile.router.engine import Call, Identity, Reply

_KEPT_S = 300.0  # its own default; a shorter wish would only have the model unloaded earlier
_SHORT_TOKENS = 16_384  # agents' prompts outgrow less; Ollama itself advises 64,000 for them


class Ollama(OpenAIShaped):
    """The adapter of `ollama=URL`; it tells no load and no cached tokens, and a request stops when
    its connection is closed."""

    kind = "ollama"
    fetch_command: str | None = "ollama pull"

    def identity_calls(self) -> tuple[Call, ...]:
        return (Call("GET", "/api/tags"), Call("GET", "/api/ps"), Call("GET", "/api/version"))

    def read_identity(self, replies: tuple[Reply, ...]) -> Identity:
        """The models that were pulled; the context is told of those that are loaded only."""
        names = tuple(m["name"] for m in _models(replies[0], "/api/tags"))
        if not names:
            raise ReplicaRefused("no model was pulled there: run `ollama pull MODEL` on it")
        loaded = _models(replies[1], "/api/ps")
        known = [n for m in loaded if (n := count(m.get("context_length")))]
        context = min(known, default=None)
        version = document(replies[2], "/api/version").get("version")
        return Identity(
            models=names,
            context_tokens=context,
            version=version if isinstance(version, str) else None,
            warning=None if context is None else _short(context),
        )

    def health_call(self) -> Call:
        return Call("GET", "/api/version")

    def hold_call(self, model: str, seconds: float) -> Call | None:
        """A request without a prompt loads the model, if need be, and sets how long it stays; the
        next turn sets that to the server's own again."""
        if seconds <= _KEPT_S:
            return None
        wish = {"model": model, "keep_alive": f"{seconds:.0f}s"}
        return Call("POST", "/api/generate", msgspec.json.encode(wish))


def _models(reply: Reply, path: str) -> list[dict[str, Any]]:
    listed = document(reply, path).get("models") or []
    if not isinstance(listed, list):
        raise ReplicaRefused(f"its {path} is not a list of models")
    return [m for m in listed if isinstance(m, dict) and isinstance(m.get("name"), str)]


def _short(context_tokens: int) -> str | None:
    if context_tokens >= _SHORT_TOKENS:
        return None
    return (
        f"a model is loaded with a context of {context_tokens} tokens, and longer prompts are cut "
        "silently: start it with OLLAMA_CONTEXT_LENGTH=65536, or set num_ctx in the Modelfile"
    )
