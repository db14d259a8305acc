"""What a turn cannot do without, told from its chat request."""

from typing import Any

import pytest

from sessile.router.needs import AUDIO, IMAGES, TOOLS, needs

CALL = {"type": "function", "function": {"name": "look"}}
HISTORY = [
    {"role": "assistant", "tool_calls": [{"id": "c", **CALL}]},
    {"role": "tool", "tool_call_id": "c", "content": "seen"},
]


def said(*parts: Any) -> dict[str, Any]:
    """A request of one message."""
    return {"messages": [{"role": "user", "content": list(parts)}]}


@pytest.mark.parametrize(
    ("document", "found"),
    [
        ({"messages": [{"role": "user", "content": "hi"}]}, set()),
        (said({"type": "text", "text": "hi"}), set()),
        (said({"type": "text", "text": "hi"}, {"type": "image_url", "image_url": {}}), {IMAGES}),
        (said({"type": "input_audio", "input_audio": {}}), {AUDIO}),
        ({"tools": [CALL]}, {TOOLS}),
        ({"tools": [CALL], "tool_choice": "auto"}, {TOOLS}),
        ({"tools": [CALL], "tool_choice": "none"}, set()),
        ({"tools": [CALL], "tool_choice": "required"}, {TOOLS}),
        ({"tools": [CALL], "tool_choice": CALL}, {TOOLS}),
        ({"prompt": "hi"}, set()),
        ({"tools": [], "messages": HISTORY}, set()),
        ({"messages": [None, {"content": [None, {"type": []}]}], "tool_choice": 1}, set()),
    ],
)
def test_a_turn_needs_what_it_brings_and_what_it_demands(
    document: dict[str, Any], found: set[str]
) -> None:
    """Media in any message, and tools that may be called; calls made before are none, and what is
    malformed is the engine's to refuse."""
    assert needs(document) == found
