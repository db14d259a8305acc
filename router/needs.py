"""What a turn cannot do without, and what a replica says that its model has not. Pure.

An engine that lacks it would leave it aside in silence, or answer as if it were broken: the turn is
refused by name instead, where no replica can serve it.
"""

from collections.abc import Iterable, Mapping
from typing import Any

IMAGES, AUDIO, CALLS = "images", "audio", "calls"
_PARTS = {"image_url": IMAGES, "input_audio": AUDIO}

SAID: Mapping[str, str] = {
    IMAGES: "takes no images",
    AUDIO: "takes no audio",
    CALLS: "cannot be made to call a tool, since its chat template has no place for tools; leave "
    "tool_choice at auto, or serve a model whose template has",
}
"""How it is told of a model."""


def needs(document: Mapping[str, Any]) -> frozenset[str]:
    """What a chat request cannot be served without. Tools that it may leave alone are no need."""
    found = set()
    if _must_call(document.get("tool_choice")):
        found.add(CALLS)
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
