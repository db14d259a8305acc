"""What is replayed in virtual time: agent programs made up from a seed, recorded agent runs, and
request traces of block hashes. A session here is lengths and block keys, no text.
"""

import gzip
from collections.abc import Callable, Iterable, Iterator
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from random import Random
from typing import Literal

import msgspec

from sessile.errors import InvalidRequest
from sessile.lab.workload import CHARS_PER_TOKEN, Message, read_trajectories

BLOCK_TOKENS = 128
_TRACE_BLOCK_TOKENS = 512
_BURST = 8  # sessions that start together, with arrival in bursts

Arrival = Literal["poisson", "even", "bursts"]


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

    def count(self) -> int:
        """How many turns it has, those of spawned sessions too."""
        return sum(1 + sum(child.count() for child in turn.spawns) for turn in self.turns)


class Load(msgspec.Struct, frozen=True):
    """A workload. `sessions` makes its sessions anew at each call, in the order of their start, so
    that a million of them need not be there at once; `count` is how many come."""

    name: str
    sessions: Callable[[], Iterator[SimSession]]
    count: int
    block_tokens: int

    def working_set_tokens(self) -> int:
        """Tokens of all distinct blocks: what an endless cache would come to hold."""
        seen: set[int] = set()
        for session in self.sessions():
            _see(session, seen)
        return len(seen) * self.block_tokens


class Shape(msgspec.Struct, frozen=True, kw_only=True):
    """What made-up agent programs look like; lengths in tokens. The pauses are the field's: 86 %
    end within a second, 95 % within ten."""

    sessions: int = 300
    rate: float = 0.4
    arrival: Arrival = "poisson"
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
    """Agent programs made up from a seed: shared system prompts, tool gaps, fan-out."""

    def sessions() -> Iterator[SimSession]:
        starts = _arrivals(shape.arrival, shape.rate, seed)
        for number, at in enumerate(islice(starts, shape.sessions)):
            rng = Random(f"{seed} {number}")
            text = _Text()
            text.add(rng.randrange(shape.systems), shape.system_tokens)
            name = f"s{number}"
            yield _agent(rng, shape, name, name, at, text, shape.fan_out)

    return Load(f"{shape.sessions} generated agents", sessions, shape.sessions, BLOCK_TOKENS)


def trajectory_load(path: Path, shape: Shape, seed: int) -> Load:
    """Recorded agent runs, repeated until there are as many sessions as the shape says, with its
    arrivals and fan-out and made-up pauses; a run is cut where the shape's context ends.

    A repeated run is another task: only its first message, the system prompt, is shared.
    """
    runs = [run for run in map(_run, read_trajectories(path)) if _fits(run, shape.context_tokens)]
    if not runs:
        raise InvalidRequest(f"no trajectory of {path} fits into {shape.context_tokens} tokens")

    def sessions() -> Iterator[SimSession]:
        starts = _arrivals(shape.arrival, shape.rate, seed)
        for number, at in enumerate(islice(starts, shape.sessions)):
            rng = Random(f"{seed} {number}")
            name = f"s{number}"
            yield _recorded(rng, shape, name, name, at, runs[number % len(runs)], _Text())

    return Load(f"{shape.sessions} sessions of {path.name}", sessions, shape.sessions, BLOCK_TOKENS)


def trace_load(path: Path, speed: float = 1.0) -> Load:
    """A trace of single requests, JSONL of `{timestamp, input_length, output_length, hash_ids}`
    with a hash for each 512 tokens, perhaps gzipped. Raises `InvalidRequest` naming the line."""
    made = []
    for number, line in _lines(path):
        try:
            entry = msgspec.json.decode(line, type=_Request)
        except msgspec.DecodeError as error:
            raise InvalidRequest(
                f"{path}:{number} is not a line of {{timestamp, input_length, "
                f"output_length, hash_ids}}: {error}"
            ) from error
        # The last, partial block is no block that another request could share.
        blocks = tuple(entry.hash_ids[: entry.input_length // _TRACE_BLOCK_TOKENS])
        turn = SimTurn(blocks, blocks, max(1, entry.input_length), max(1, entry.output_length))
        name = f"r{number}"
        made.append(SimSession(name, name, entry.timestamp / 1000 / speed, [turn]))
    made.sort(key=lambda session: session.start_s)
    if not made:
        raise InvalidRequest(f"{path} holds no request")
    return Load(f"{len(made)} requests of {path.name}", made.__iter__, len(made),
                _TRACE_BLOCK_TOKENS)  # fmt: skip


def is_trace(path: Path) -> bool:
    """Whether the file's first line is a request of a trace, and not an agent's run."""
    for number, line in _lines(path):
        try:
            entry = msgspec.json.decode(line)
        except msgspec.DecodeError as error:
            raise InvalidRequest(f"{path}:{number} is not JSON: {error}") from error
        if isinstance(entry, dict) and ("hash_ids" in entry or "messages" in entry):
            return "hash_ids" in entry
        raise InvalidRequest(
            f"{path}:{number} is neither a request of a trace, {{timestamp, input_length, "
            "output_length, hash_ids}, nor an agent's run, {id, messages}"
        )
    raise InvalidRequest(f"{path} is empty")


class _Request(msgspec.Struct):
    timestamp: float
    input_length: int
    output_length: int
    hash_ids: list[int]


class _Text:
    """A growing prompt made of named pieces: its tokens, and the keys of its full blocks.

    Equal keys mean equal beginnings: a key is mixed from all pieces before, the piece in which the
    block ends, and where in it. NOTE: of whole numbers only, whose hash no process salts.
    """

    __slots__ = ("_state", "keys", "tokens")

    def __init__(self) -> None:
        self.keys: list[int] = []
        self.tokens = 0
        self._state = 0

    def add(self, piece: int, tokens: int) -> None:
        """The prompt goes on with so many tokens of that piece."""
        state = self._state
        first = BLOCK_TOKENS - self.tokens % BLOCK_TOKENS
        self.keys += [hash((state, piece, end)) for end in range(first, tokens + 1, BLOCK_TOKENS)]
        self.tokens += tokens
        self._state = hash((state, piece, tokens))

    def turn(self, reply: int, output_tokens: int, gap_s: float, tool: str) -> SimTurn:
        """The turn that this prompt makes; its reply is added."""
        blocks, tokens = tuple(self.keys), self.tokens
        self.add(reply, output_tokens)
        return SimTurn(blocks, tuple(self.keys), tokens, output_tokens, gap_s, tool)

    def fork(self) -> "_Text":
        """Another that goes on from here."""
        other = _Text()
        other.keys, other.tokens, other._state = self.keys.copy(), self.tokens, self._state
        return other


def _agent(
    rng: Random, shape: Shape, id: str, program: str, at: float, text: _Text, fan_out: float,
    most: int = 1_000_000,
) -> SimSession:  # fmt: skip
    text.add(rng.getrandbits(60), rng.randint(*shape.task_tokens))
    turns: list[SimTurn] = []
    count = min(rng.randint(*shape.turns), most)
    forks_at = rng.randrange(count) if rng.random() < fan_out else -1
    for index in range(count):
        output = rng.randint(*shape.output_tokens)
        if text.tokens + output > shape.context_tokens:
            break
        gap_s = _gap(rng) if turns else 0.0
        turn = text.turn(rng.getrandbits(60), output, gap_s, "tool" if turns else "")
        if index == forks_at:
            for child in range(rng.randint(*shape.children)):
                spawned = _agent(rng, shape, f"{id}.{child}", program, 0.0, text.fork(), 0.0,
                                 max(2, rng.randint(*shape.turns) // 4))  # fmt: skip
                spawned.parent = id
                if spawned.turns:
                    turn.spawns = [*turn.spawns, spawned]
        turns.append(turn)
        text.add(rng.getrandbits(60), rng.randint(*shape.added_tokens))
    return SimSession(id, program, at, turns)


_Run = list[tuple[int, int, bool]]
"""Of each message of a recorded run: a name for its content, its tokens, whether it is a reply."""


def _run(recorded: tuple[str, list[Message]]) -> _Run:
    found = []
    for index, message in enumerate(recorded[1]):
        named = blake2b(message["content"].encode("utf-8", "surrogatepass"), digest_size=7)
        tokens = max(1, int(len(message["content"]) / (CHARS_PER_TOKEN + 1)))
        reply = message["role"] == "assistant" and index > 0
        found.append((int.from_bytes(named.digest(), "big"), tokens, reply))
    return found


def _fits(run: _Run, context_tokens: int) -> bool:
    """Whether at least its first turn does."""
    tokens = 0
    for _, size, reply in run:
        tokens += size
        if reply:
            return tokens <= context_tokens
    return False


def _recorded(
    rng: Random, shape: Shape, id: str, program: str, at: float, run: _Run, text: _Text,
    first: int = 0,
) -> SimSession:  # fmt: skip
    """The run from its message `first` on."""
    turns: list[SimTurn] = []
    replies = sum(reply for _, _, reply in run[first:])
    forks_at = rng.randrange(replies) if rng.random() < shape.fan_out and not first else -1
    for index, (name, tokens, reply) in enumerate(run[first:], first):
        if not reply:
            text.add(name if not index else rng.getrandbits(60), tokens)
            continue
        if text.tokens + tokens > shape.context_tokens:
            break
        turn = text.turn(rng.getrandbits(60), tokens, _gap(rng) if turns else 0.0, "tool")
        if len(turns) == forks_at:
            for child in range(rng.randint(*shape.children)):
                spawned = _recorded(
                    rng, shape, f"{id}.{child}", program, 0.0, run, text.fork(), index + 1
                )
                spawned.parent = id
                if spawned.turns:
                    turn.spawns = [*turn.spawns, spawned]
        turns.append(turn)
    return SimSession(id, program, at, turns)


def _arrivals(arrival: Arrival, rate: float, seed: int) -> Iterator[float]:
    """When sessions start: `rate` a second in the mean."""
    rng = Random(seed)
    at = 0.0
    number = 0
    while True:
        yield at
        number += 1
        if arrival == "even":
            at += 1 / rate
        elif arrival == "poisson":
            at += rng.expovariate(rate)
        elif number % _BURST == 0:
            at += rng.expovariate(rate / _BURST)


def _gap(rng: Random) -> float:
    """A pause for a tool, in seconds."""
    drawn = rng.random()
    if drawn < 0.86:
        return rng.uniform(0.05, 1.0)
    if drawn < 0.95:
        return rng.uniform(1.0, 10.0)
    return rng.uniform(10.0, 60.0)


def _see(session: SimSession, seen: set[int]) -> None:
    for turn in session.turns:
        seen.update(turn.after)
        for child in turn.spawns:
            _see(child, seen)


def _lines(path: Path) -> Iterable[tuple[int, bytes]]:
    """The lines of a file that hold something, numbered from 1; gzipped ones are unpacked."""
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rb") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield number, line
    except (OSError, EOFError) as error:
        raise InvalidRequest(f"cannot read {path}: {error}") from error
