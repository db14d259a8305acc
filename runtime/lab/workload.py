"""Multi-turn agent sessions to replay: read from recorded trajectories, or generated from a seed.

A session is a list of prompts, each the whole history that an agent would send for that turn. The
recorded replies stand in it, not those of the model that is measured, so that every run sends the
same prompts whatever it is answered.
"""

import gzip
import random
from bisect import bisect_left, insort
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from sessile.errors import InvalidRequest

CHARS_PER_TOKEN = 2.9
"""Characters a token, on the low side for English and code, so that cut prompts fit for sure."""

Message = dict[str, str]


class PlannedTurn(msgspec.Struct, frozen=True):
    """One request: its messages, and how long the agent pauses before it, in seconds."""

    messages: list[Message]
    think_s: float

    @property
    def text(self) -> str:
        """The prompt as one string, as far as prefixes are concerned."""
        return "".join(f"\x02{m['role']}\x03{m['content']}" for m in self.messages)


class PlannedSession(msgspec.Struct, frozen=True):
    """One agent's turns, and when it starts, in seconds from the beginning of the run."""

    id: str
    start_s: float
    turns: list[PlannedTurn]


def read_trajectories(path: Path) -> list[tuple[str, list[Message]]]:
    """The `{id, messages}` lines of a JSONL file, every message made plain text of a role that any
    chat template takes. Raises `InvalidRequest` naming file and line."""
    found = []
    try:
        data = path.read_bytes()
        lines = (gzip.decompress(data) if path.suffix == ".gz" else data).splitlines()
    except (OSError, EOFError) as error:
        raise InvalidRequest(f"cannot read {path}: {error}") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            entry = msgspec.json.decode(line)
            messages = [_plain(message) for message in entry["messages"]]
            if not messages:
                raise KeyError("no messages")
            found.append((str(entry.get("id", number)), messages))
        except (msgspec.DecodeError, KeyError, TypeError, AttributeError) as error:
            raise InvalidRequest(
                f"{path}:{number} is not a line of {{id, messages}}: {error}"
            ) from error
    if not found:
        raise InvalidRequest(f"{path} holds no trajectory")
    return found


def generate_trajectories(sessions: int, seed: int) -> list[tuple[str, list[Message]]]:
    """Agent runs made up from a seed: a few shared system prompts, tool output of uneven length,
    and now and then a fan-out, where several sessions begin with the same task."""
    rng = random.Random(seed)
    systems = [_words(rng, 400) for _ in range(max(1, sessions // 8))]
    found: list[tuple[str, list[Message]]] = []
    while len(found) < sessions:
        system = rng.choice(systems)
        opening: list[Message] = [
            {"role": "system", "content": system},
            {"role": "user", "content": "Task: " + _words(rng, rng.randint(20, 100))},
        ]
        siblings = 4 if rng.random() < 0.15 else 1
        for _ in range(min(siblings, sessions - len(found))):
            messages = list(opening)
            for _ in range(rng.randint(4, 10)):
                messages.append({"role": "assistant", "content": _words(rng, rng.randint(20, 60))})
                messages.append(
                    {"role": "user", "content": "Tool output: " + _words(rng, rng.randint(20, 200))}
                )
            messages.append({"role": "assistant", "content": "Done."})
            found.append((f"generated-{len(found)}", messages))
    return found


def plan(
    trajectories: Iterable[tuple[str, list[Message]]],
    *,
    context_tokens: int,
    max_tokens: int,
    rate: float,
    think_s: float,
    seed: int,
    salt: str = "",
) -> list[PlannedSession]:
    """Sessions with Poisson arrivals at `rate` a second and exponential pauses of mean `think_s`.

    A trajectory ends before its first prompt that would not fit into `context_tokens` together
    with a reply of `max_tokens`; one whose first prompt does not fit is left out. `salt` heads
    every first message, so that runs with different salts share no prefix.
    """
    rng = random.Random(seed)
    room = int((context_tokens - max_tokens) * CHARS_PER_TOKEN)
    sessions = []
    at = 0.0
    for name, messages in trajectories:
        turns: list[PlannedTurn] = []
        if salt:
            head = {**messages[0], "content": f"[{salt}] {messages[0]['content']}"}
            messages = [head, *messages[1:]]
        size = 0
        for index, message in enumerate(messages):
            if message["role"] == "assistant" and index:
                if size > room:
                    break
                pause = rng.expovariate(1 / think_s) if think_s and turns else 0.0
                turns.append(PlannedTurn(messages[:index], pause))
            size += len(message["content"]) + 8
        if turns:
            sessions.append(PlannedSession(name, at, turns))
            at += rng.expovariate(rate)
    if not sessions:
        raise InvalidRequest(f"no trajectory fits into a context of {context_tokens} tokens")
    return sessions


def ceiling(prompts: Sequence[str]) -> float:
    """The hit rate of one replica with an endless cache that served `prompts` in this order: the
    share of their characters that some earlier prompt began with."""
    seen: list[str] = []
    shared = total = 0
    for prompt in prompts:
        place = bisect_left(seen, prompt)
        # Of all earlier prompts, those next to it in order share the longest beginning.
        shared += max((_common(prompt, other) for other in seen[max(0, place - 1) : place + 1]),
                      default=0)  # fmt: skip
        total += len(prompt)
        insort(seen, prompt)
    return shared / total if total else 0.0


def _common(one: str, other: str) -> int:
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def _plain(message: dict[str, Any]) -> Message:
    content = message.get("content") or ""
    if isinstance(content, list):
        content = "\n".join(str(part.get("text", "")) for part in content)
    if not isinstance(content, str):
        raise TypeError("a content that is neither text nor a list of parts")
    for call in message.get("tool_calls") or ():
        function = call.get("function") or {}
        content += f"\n[call {function.get('name')} {function.get('arguments')}]"
    role = message["role"]
    if role == "tool":
        return {"role": "user", "content": f"[tool output]\n{content}"}
    return {"role": role if role in ("system", "assistant") else "user", "content": content}


_VOCABULARY = tuple(
    "the file test error line class return value index module import fails with when call list "  # noqa: SIM905
    "buffer open read write run patch branch commit review change function argument result log "
    "server client request token cache replica session router path config version build".split()
)


def _words(rng: random.Random, count: int) -> str:
    """Names as code has them. NOTE: no digits, which some tokenizers take one by one: made-up text
    must not have fewer than `CHARS_PER_TOKEN`."""
    return " ".join(f"{rng.choice(_VOCABULARY)}_{rng.choice(_VOCABULARY)}" for _ in range(count))
