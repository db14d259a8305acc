"""What is replayed in virtual time: agent programs made up from a seed, recorded agent runs, and
request traces of block hashes. A session here is lengths and block keys, no text.
"""

import gzip
import random
from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path

import msgspec

from sessile.errors import InvalidRequest
from sessile.lab.workload import CHARS_PER_TOKEN, read_trajectories

BLOCK_TOKENS = 128
_TRACE_BLOCK_TOKENS = 512


class SimTurn(msgspec.Struct):
    """One turn: `gap_s` after the end of the one before (and of all that it `spawns`), with the
    tool that the gap is for. `after` are the blocks of prompt and reply."""

    blocks: tuple[int, ...]
    after: tuple[int, ...]
    prompt_tokens: int
    output_tokens: int
    gap_s: float = 0.0
    tool: str = ""
    spawns: "list[SimSession]" = []


class SimSession(msgspec.Struct):
    """One agent's turns; it starts at `start_s`, or when its parent's turn spawns it."""

    id: str
    program: str
    start_s: float
    turns: list[SimTurn]
    parent: str | None = None


class Load(msgspec.Struct):
    """A workload: its sessions in the order of their start, and the tokens of one block."""

    sessions: list[SimSession]
    block_tokens: int

    def turns(self) -> int:
        """How many turns it has, those of spawned sessions too."""
        return sum(_turns(session) for session in self.sessions)


class Shape(msgspec.Struct, frozen=True, kw_only=True):
    """What made-up agent programs look like; lengths in tokens. The pauses are the field's: 86 %
    end within a second, 95 % within ten."""

    sessions: int = 400
    rate: float = 1.0
    systems: int = 8
    system_tokens: int = 2_000
    task_tokens: tuple[int, int] = (200, 800)
    turns: tuple[int, int] = (4, 24)
    added_tokens: tuple[int, int] = (100, 1_500)
    output_tokens: tuple[int, int] = (40, 200)
    fan_out: float = 0.08
    children: tuple[int, int] = (4, 16)
    context_tokens: int = 32_000


def agent_load(shape: Shape, seed: int) -> Load:
    """Agent programs with Poisson arrivals: shared system prompts, tool gaps, fan-out."""
    rng = random.Random(seed)
    sessions = []
    at = 0.0
    for number in range(shape.sessions):
        system = (f"system {rng.randrange(shape.systems)}", shape.system_tokens)
        sessions.append(_agent(rng, shape, f"s{number}", f"s{number}", at, [system], shape.fan_out))
        at += rng.expovariate(shape.rate)
    return Load(sessions, BLOCK_TOKENS)


def trajectory_load(path: Path, sessions: int, rate: float, context_tokens: int, seed: int) -> Load:
    """Recorded agent runs, repeated until there are `sessions` of them, with made-up pauses.

    A repeated run is another task: only its first message, the system prompt, is shared.
    """
    rng = random.Random(seed)
    runs = read_trajectories(path)
    made = []
    at = 0.0
    for number in range(sessions):
        name, messages = runs[number % len(runs)]
        copy = number // len(runs)
        pieces: list[tuple[str, int]] = []
        turns: list[SimTurn] = []
        for index, message in enumerate(messages):
            tokens = max(1, int(len(message["content"]) / (CHARS_PER_TOKEN + 1)))
            if message["role"] == "assistant" and index:
                if sum(size for _, size in pieces) + tokens > context_tokens:
                    break
                gap_s = _gap(rng) if turns else 0.0
                turns.append(_turn(pieces, (f"{name} {copy} {index}", tokens), gap_s, "bash"))
                pieces = [*pieces, (f"{name} {copy} {index}", tokens)]
            else:
                told = message["content"][:2000] if not index else f"{name} {copy} {index}"
                pieces = [*pieces, (told, tokens)]
        if turns:
            made.append(SimSession(f"s{number}", f"s{number}", at, turns))
        at += rng.expovariate(rate)
    if not made:
        raise InvalidRequest(f"no trajectory of {path} fits into {context_tokens} tokens")
    return Load(made, BLOCK_TOKENS)


def trace_load(path: Path, speed: float = 1.0) -> Load:
    """A trace of single requests, JSONL of `{timestamp, input_length, output_length, hash_ids}`
    with a hash for each 512 tokens, perhaps gzipped. Raises `InvalidRequest` naming the line."""
    sessions = []
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rb") as lines:
            for number, line in enumerate(lines, 1):
                if not line.strip():
                    continue
                try:
                    entry = msgspec.json.decode(line, type=_Request)
                except msgspec.DecodeError as error:
                    raise InvalidRequest(
                        f"{path}:{number} is not a line of {{timestamp, input_length, "
                        f"output_length, hash_ids}}: {error}"
                    ) from error
                # The last, partial block is no block that another request could share.
                blocks = tuple(entry.hash_ids[: entry.input_length // _TRACE_BLOCK_TOKENS])
                turn = SimTurn(
                    blocks, blocks, max(1, entry.input_length), max(1, entry.output_length)
                )
                name = f"r{number}"
                sessions.append(SimSession(name, name, entry.timestamp / 1000 / speed, [turn]))
    except OSError as error:
        raise InvalidRequest(f"cannot read {path}: {error}") from error
    if not sessions:
        raise InvalidRequest(f"{path} holds no request")
    return Load(sessions, _TRACE_BLOCK_TOKENS)


class _Request(msgspec.Struct):
    timestamp: float
    input_length: int
    output_length: int
    hash_ids: list[int]


def _agent(
    rng: random.Random, shape: Shape, id: str, program: str, at: float,
    pieces: Sequence[tuple[str, int]], fan_out: float,
) -> SimSession:  # fmt: skip
    pieces = [*pieces, (f"{id} task", rng.randint(*shape.task_tokens))]
    turns: list[SimTurn] = []
    count = rng.randint(*shape.turns)
    forks_at = rng.randrange(count) if rng.random() < fan_out else -1
    for index in range(count):
        output = rng.randint(*shape.output_tokens)
        if sum(size for _, size in pieces) + output > shape.context_tokens:
            break
        gap_s = _gap(rng) if turns else 0.0
        turn = _turn(pieces, (f"{id} {index} reply", output), gap_s, "tool" if turns else "")
        pieces = [*pieces, (f"{id} {index} reply", output)]
        if index == forks_at:
            children = rng.randint(*shape.children)
            turn.spawns = [
                _agent(rng, shape, f"{id}.{child}", program, 0.0, pieces, 0.0)
                for child in range(children)
            ]
            for child in turn.spawns:
                child.parent = id
                del child.turns[max(2, len(child.turns) // 4) :]
        turns.append(turn)
        pieces = [*pieces, (f"{id} {index} tool", rng.randint(*shape.added_tokens))]
    return SimSession(id, program, at, turns)


def _turn(
    pieces: Sequence[tuple[str, int]], reply: tuple[str, int], gap_s: float, tool: str
) -> SimTurn:
    blocks, tokens = _blocks(pieces)
    after, _ = _blocks([*pieces, reply])
    return SimTurn(blocks, after, tokens, reply[1], gap_s, tool)


def _blocks(pieces: Sequence[tuple[str, int]]) -> tuple[tuple[int, ...], int]:
    """Keys of the full blocks of a text made of named pieces, and its tokens: equal keys for equal
    beginnings."""
    keys = []
    total = 0
    state = blake2b(digest_size=8)
    for name, size in pieces:
        # Block ends inside a piece are told apart by where they lie in it.
        named = state.copy()
        named.update(f"{name}\x00".encode())
        first = BLOCK_TOKENS - total % BLOCK_TOKENS
        for end in range(first, size + 1, BLOCK_TOKENS):
            key = named.copy()
            key.update(b"%d" % end)
            keys.append(int.from_bytes(key.digest(), "big"))
        total += size
        state.update(f"{name}\x00{size}\x00".encode())
    return tuple(keys), total


def _gap(rng: random.Random) -> float:
    """A pause for a tool, in seconds."""
    drawn = rng.random()
    if drawn < 0.86:
        return rng.uniform(0.05, 1.0)
    if drawn < 0.95:
        return rng.uniform(1.0, 10.0)
    return rng.uniform(10.0, 60.0)


def _turns(session: SimSession) -> int:
    return len(session.turns) + sum(_turns(c) for turn in session.turns for c in turn.spawns)
