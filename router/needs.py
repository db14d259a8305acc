"""What a turn cannot do without, and what a replica says that its model has not. Pure.

An engine that lacks it would leave it aside in silence, or answer as if it were broken: the turn is
refused by name instead, where no replica can serve it.
"""

from collections.abc import Iterable, Mapping
from typing import Any

IMAGES, AUDIO, TOOLS = "images", "audio", "tools"
_PARTS = {"image_url": IMAGES, "input_audio": AUDIO}

SAID: Mapping[str, str] = {
    IMAGES: "takes no images",
    AUDIO: "takes no audio",
    TOOLS: "takes no tools, since its chat template has no place for them; leave them out, or "
    "serve a model whose template has: sessile up --model FILE.gguf, or llama-server with --jinja "
    "and --chat-template-file",
}
"""How it is told of a model."""


def needs(document: Mapping[str, Any]) -> frozenset[str]:
    """What a chat request cannot be served without. Calls that were made before are no need, nor
    are tools of which none is to be called."""
    found = set()
    choice = document.get("tool_choice")
    if choice != "none" and (document.get("tools") or _must_call(choice)):
        found.add(TOOLS)
    for message in _objects(document.get("messages")):
        for part in _objects(message.get("content")):
            if (kind := _PARTS.get(str(part.get("type")))) is not None:
                found.add(kind)
    return frozenset(found)


def _must_call(choice: Any) -> bool:
    return choice == "required" or (isinstance(choice, dict) and choice.get("type") == "function")


def _objects(values: Any) -> Iterable[Mapping[str, Any]]:
    if not isinstance(values, list):
        return ()
    return (value for value in values if isinstance(value, Mapping))
