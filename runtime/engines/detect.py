"""Which engine answers at a URL that came without a name: by what it says of itself.

Asked by the probe each time such a replica comes up, since it may be down when the router starts,
or another engine when it comes back. What says nothing of itself, but lists models, is `openai`.
"""

from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from sessile.engines.base import OpenAIShaped
from sessile.engines.lmstudio import UNKNOWN_PATH
from sessile.errors import ReplicaRefused, ReplicaUnreachable
from sessile.router.engine import Call, Engine, Reply

MODELS, OLLAMA, TGI, LMSTUDIO = "/v1/models", "/api/version", "/info", "/api/v1/models"
_OWNERS = {
    "sglang": "sglang",
    "vllm": "vllm",
    "llamacpp": "llamacpp",
    "tensorrt_llm": "tensorrt-llm",
    "triton inference server": "triton",
}


class Auto(OpenAIShaped):
    """Stands in for the adapter of a replica until its engine is known; never for longer. `of`
    gives the adapter of a kind."""

    kind = "auto"

    def __init__(self, of: Callable[[str], Engine]) -> None:
        self._of = of

    def detect_calls(self) -> tuple[Call, ...]:
        return tuple(Call("GET", path) for path in (MODELS, OLLAMA, TGI, LMSTUDIO))

    def detected(self, replies: tuple[Reply, ...]) -> Engine:
        paths = [call.path for call in self.detect_calls()]
        return self._of(detect(dict(zip(paths, replies, strict=True))))


def named(text: str) -> tuple[str, str]:
    """`ENGINE=URL`, or a URL alone, of a replica or of a source of them, as an engine's kind and a
    URL; the URL is empty where `text` is neither."""
    kind, _, url = text.partition("=")
    return (Auto.kind, text) if "://" in kind else (kind, url)


def detect(replies: Mapping[str, Reply]) -> str:
    """The kind of the engine that gave these replies, by path.

    Raises `ReplicaRefused` where no engine answers, `ReplicaUnreachable` while one loads.
    """
    told = {path: _told(reply) for path, reply in replies.items()}
    listed = told[MODELS].get("data")
    models = [m for m in listed if isinstance(m, dict)] if isinstance(listed, list) else []
    for model in models:
        if kind := _OWNERS.get(str(model.get("owned_by")).lower()):
            return kind
    if isinstance(told[OLLAMA].get("version"), str):
        return "ollama"
    if isinstance(told[LMSTUDIO].get("models"), list) or any(
        str(said.get("error", "")).startswith(UNKNOWN_PATH) for said in told.values()
    ):
        return "lmstudio"
    if isinstance(told[TGI].get("model_id"), str):
        return "tgi"
    if models:
        return "openai"
    status = replies[MODELS].status
    if status in (502, 503, 504):
        raise ReplicaUnreachable(f"its {MODELS} answered {status}: it does not serve yet")
    if status in (401, 403):
        raise ReplicaRefused(f"its {MODELS} answered {status}: it asks for a key")
    said = f"answered {status}" if status != 200 else "lists no model"
    raise ReplicaRefused(f"no engine that is known answers there: its {MODELS} {said}")


def _told(reply: Reply) -> dict[str, Any]:
    """The object that a page is, empty for any other page."""
    try:
        said = msgspec.json.decode(reply.body) if reply.status == 200 else None
    except (msgspec.DecodeError, UnicodeDecodeError):
        return {}
    return said if isinstance(said, dict) else {}
