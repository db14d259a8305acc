"""Where two prompts part, and what is said of the cache."""

from typing import Any

import msgspec
import pytest
from openai.types.responses.response import PromptCacheDiagnostics
from pydantic import TypeAdapter

from sessile.api.cache_diagnosis import Compared, Prompt, diagnose, part
from sessile.sessions.record import Receipt

_TOLD: TypeAdapter[Any] = TypeAdapter(PromptCacheDiagnostics)
SYSTEM = {"role": "system", "content": "Be brief. " * 50}
ASKED = {"role": "user", "content": "How is the weather in Oslo? " * 20}
SAID = {"role": "assistant", "content": "Rainy. " * 30}
NEXT = {"role": "user", "content": "And now?"}
OLD = Prompt("m", [SYSTEM, ASKED])
NEW = Prompt("m", [SYSTEM, ASKED, SAID, NEXT])


def ran(replica: str = "one", incarnation: str = "i") -> Receipt:
    return Receipt(
        turn="t", session="s", model="m", policy="session", replica=replica,
        incarnation=incarnation,
    )  # fmt: skip


def told(new: Prompt, cached: int | None, now: Receipt, tokens: int | None = 1_000) -> Any:
    """The diagnosis, valid for OpenAI's models, against a turn that ran at replica one."""
    found = diagnose(Compared(OLD, [SAID], ran()), new, now, tokens, cached)
    _TOLD.validate_python(found)
    return found


def test_a_prompt_that_goes_on_parts_nowhere():
    """All of the old prompt and its reply is there."""
    parting = part(Compared(OLD, [SAID], None), NEW)
    assert parting.reason is None and parting.message is None
    assert 0.9 < parting.shared < 1


@pytest.mark.parametrize(
    ("new", "reason", "message"),
    [
        (Prompt("other", NEW.messages), "model_changed", None),
        (Prompt("m", NEW.messages, [{"name": "t"}]), "tools_changed", None),
        (Prompt("m", NEW.messages, effort="high"), "reasoning_effort_changed", None),
        (Prompt("m", [ASKED, SAID]), "input_changed", 0),
        (Prompt("m", [SYSTEM, NEXT]), "input_changed", 1),
        (Prompt("m", [SYSTEM]), "input_changed", 1),
        (Prompt("m", [SYSTEM, ASKED, NEXT]), None, 2),
    ],
)
def test_where_prompts_part(new, reason, message):
    """What stands first in a prompt parts it first; another reply than the old one is no miss of
    its prompt."""
    parting = part(Compared(OLD, [SAID], None), new)
    assert (parting.reason, parting.message) == (reason, message)


def test_a_text_that_parts_in_its_middle_is_shared_up_to_there():
    """The character is told, and counts."""
    changed = {**ASKED, "content": ASKED["content"].replace("weather in Oslo? How", "X", 1)}
    parting = part(Compared(OLD, [], None), Prompt("m", [SYSTEM, changed]))
    assert parting.message == 1 and parting.character == len("How is the ")
    whole = part(Compared(OLD, [], None), Prompt("m", [SYSTEM, NEXT]))
    assert parting.character is not None and parting.shared < whole.shared


def test_a_hit_is_a_hit():
    """The engine found what was shared, but for a block or so."""
    found = told(NEW, 950, ran())
    assert found["type"] == "cache_hit" and found["sessile"]["why"] is None
    assert found["sessile"]["cached_tokens"] == 950 and found["sessile"]["message"] is None


def test_a_miss_says_where_and_how_much():
    """Tokens before the parting and after it add up to the prompt."""
    found = told(Prompt("m", [SYSTEM, NEXT]), 900, ran())
    assert found["type"] == "cache_miss" and found["reason"] == "input_changed"
    assert found["comparison_reusable_tokens"] + found["cache_missed_tokens"] == 1_000
    assert found["sessile"]["message"] == 1


@pytest.mark.parametrize(
    ("now", "cached", "why"),
    [
        (ran("two"), 0, "moved"),
        (ran("one", "j"), 0, "replica_restarted"),
        (ran(), 10, "evicted"),
        (ran(), None, "not_reported"),
    ],
)
def test_memory_that_was_lost_has_a_reason(now, cached, why):
    """The API has no word for it: unavailable there, and ours beside it."""
    found = told(NEW, cached, now)
    assert found["type"] == "unavailable" and found["sessile"]["why"] == why
    assert found["sessile"]["comparison_replica"] == "one"


def test_what_is_not_known_is_not_made_up():
    """No count of the engine, no receipt of the old turn, a prompt below a block, no response."""
    assert told(Prompt("m", [NEXT]), None, ran(), None)["type"] == "unavailable"
    unknown = diagnose(Compared(OLD, [], None), NEW, ran(), 1_000, 0)
    assert unknown["sessile"]["why"] == "unknown"
    assert told(NEW, 0, ran(), 20)["sessile"]["why"] == "too_short"
    assert diagnose(None, NEW, ran(), 1, 1) == {"type": "comparison_response_not_found"}
    assert msgspec.json.encode(unknown)
