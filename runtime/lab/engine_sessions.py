"""What it would add to give an engine only the new tokens of each turn: SGLang's own sessions.

`python -m sessile.lab.engine_sessions --replica http://localhost:30000` asks one SGLang directly,
without a router, and runs one tool loop in each way that it has: `chat`, the whole chat as Sessile
gives it; `ids`, the whole prompt as token ids; `session`, the new ids only; and `streaming`, the
same to a session that keeps its KV memory, where the server was started with
`--enable-streaming-session`. The loops go on side by side, turn by turn in changing order, so that
a machine that slows down does that to all, and each has a namespace of the cache to itself: none
finds what another left. The server's KV memory has to hold all of them at once.

The ids are made by the engine's `/tokenize`, before the clock starts: a router that gives ids
would have to render and count by itself, so what `ids`, `session` and `streaming` gain is told
too high. TTFT is to the first text. With `--pid` of the server's process on this machine it is told
in CPU that the server used, instead of time: on one core the same, but for what else runs there.
"""

import argparse
import asyncio
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from statistics import median
from typing import Any
from urllib.parse import urlsplit

import httpx2
import msgspec
from rich.console import Console
from rich.table import Table

from sessile.errors import ReplicaUnreachable, SessileError
from sessile.lab.bench import quantile
from sessile.lab.engine_ways import Engine, NewIds, Way, WholeChat, WholeIds, after_answer
from sessile.lab.link import Link, serve_link
from sessile.lab.loop_bench import made_text
from sessile.lab.processes import cpu_s, family

_HOWS = ("chat", "ids", "session", "streaming")
_LATE = 20  # from which turn on the prompt is long
_TIMEOUT_S = 600.0


class Setup(msgspec.Struct, frozen=True, kw_only=True):
    """`result_tokens` is the size of a tool result, in tokens of four characters; `name` tells the
    sessions and namespaces of one run from those of all others."""

    url: str
    turns: int = 30
    rounds: int = 4
    system_tokens: int = 500
    result_tokens: int = 100
    output_tokens: int = 16
    round_trip_ms: float = 0.0
    mbit: float | None = None
    pid: int | None = None
    seed: int = 1
    name: str = "bench"


class Sample(msgspec.Struct, frozen=True):
    """One turn of a loop. Token counts are the engine's; `up_bytes` is what it was sent."""

    how: str
    round: int
    turn: int
    up_bytes: int
    ttft_s: float | None
    prompt_tokens: int
    cached_tokens: int
    text: str


class Summary(msgspec.Struct, frozen=True):
    """One way's figures: bytes at the third and the last turn; of the late turns the TTFT, and what
    it is less than the chat's of the same turn, as quartiles; the last prompt, and what of it was
    cached; turns answered as `ids` was, until one was not, and of how many."""

    how: str
    third_bytes: float
    last_bytes: float
    ttft_p50_s: float | None
    less_than_chat_s: tuple[float, float, float] | None
    prompt_tokens: float
    cached_tokens: float
    as_ids: int
    turns: int


# -- the loop


async def compare(setup: Setup) -> list[Sample]:
    """All rounds, in all ways that the engine has."""
    samples: list[Sample] = []
    async with _line(setup) as (link, http):
        model, streaming = await _about(http)
        engine = Engine(http, model, setup.output_tokens, _clock(setup.pid))
        for number in range(setup.rounds):
            ways = _ways(engine, setup, number, streaming)
            try:
                samples += await _round(engine, link, setup, number, ways)
            finally:
                for way in ways:
                    await way.aclose()
    return samples


async def _round(
    engine: Engine, link: Link, setup: Setup, number: int, ways: list[Way]
) -> list[Sample]:
    samples = []
    for turn in range(1, setup.turns + 1):
        if turn % 10 == 0:
            sys.stderr.write(f"round {number + 1} of {setup.rounds}, turn {turn}\n")
        words, new = await _next(engine, setup, number, turn)
        first = (number + turn) % len(ways)
        for way in ways[first:] + ways[:first]:
            before = link.up_bytes
            said = await way.turn(words, new)
            samples.append(
                Sample(
                    way.how, number, turn, link.up_bytes - before, said.ttft_s,
                    said.prompt_tokens, said.cached_tokens, said.text,
                )
            )  # fmt: skip
    return samples


async def _next(engine: Engine, setup: Setup, number: int, turn: int) -> tuple[str, list[int]]:
    """What the user says in a turn, and its ids: all of the first prompt, then what follows an
    answer."""
    if turn == 1:
        words = f"Task {number}: read the files, then say what is wrong."
        system = {"role": "system", "content": _system(setup, number)}
        return words, await engine.ids([system, {"role": "user", "content": words}])
    words = f"Result: {made_text(setup.result_tokens, setup.seed + 1000 * number + turn)}"
    one, other = [
        await engine.ids(
            [
                {"role": "user", "content": "Read."},
                {"role": "assistant", "content": answer},
                {"role": "user", "content": words},
            ]
        )
        for answer in ("yes", "no")
    ]
    return words, after_answer(one, other)


def _ways(engine: Engine, setup: Setup, number: int, streaming: bool) -> list[Way]:
    def space(how: str) -> str:
        return f"{setup.name}-{number}-{how}"

    ways: list[Way] = [
        WholeChat(engine, space("chat"), _system(setup, number)),
        WholeIds(engine, space("ids")),
        NewIds(engine, space("session"), streaming=False),
    ]
    if streaming:
        ways.append(NewIds(engine, space("streaming"), streaming=True))
    return ways


def _system(setup: Setup, number: int) -> str:
    return f"You are agent {number}. {made_text(setup.system_tokens, setup.seed + number)}"


def _clock(pid: int | None) -> Callable[[], float]:
    """Time, or the CPU of a process and its children."""
    if pid is None:
        return time.perf_counter
    pids = family(pid)
    return lambda: sum(cpu_s(each) for each in pids)


async def _about(http: httpx2.AsyncClient) -> tuple[str, bool]:
    """The model that is served, and whether sessions may be streaming."""
    try:
        models = (await http.get("/v1/models")).json()
        info = (await http.get("/server_info")).json()
        return str(models["data"][0]["id"]), bool(info.get("enable_streaming_session"))
    except (httpx2.HTTPError, ValueError, KeyError) as error:
        raise ReplicaUnreachable("no SGLang answers there: name one with --replica") from error


@asynccontextmanager
async def _line(setup: Setup) -> AsyncIterator[tuple[Link, httpx2.AsyncClient]]:
    parts = urlsplit(setup.url)
    async with (
        serve_link(
            (parts.hostname or "127.0.0.1", parts.port or 80),
            round_trip_s=setup.round_trip_ms / 1_000,
            bits_per_s=None if setup.mbit is None else setup.mbit * 1e6,
        ) as link,
        httpx2.AsyncClient(
            base_url=f"http://127.0.0.1:{link.port}", timeout=_TIMEOUT_S, trust_env=False
        ) as http,
    ):
        yield link, http


# -- what came of it


def summed(samples: Sequence[Sample]) -> list[Summary]:
    """The figures of each way that there was."""
    found = []
    at = {(sample.how, sample.round, sample.turn): sample for sample in samples}
    for how in _HOWS:
        mine = [sample for sample in samples if sample.how == how]
        if not mine:
            continue
        last = max(sample.turn for sample in mine)
        late = [s for s in mine if s.turn >= min(_LATE, last)]
        ends = [sample for sample in mine if sample.turn == last]
        less = [
            chat.ttft_s - sample.ttft_s
            for sample in late
            if (chat := at[("chat", sample.round, sample.turn)]).ttft_s is not None
            and sample.ttft_s is not None
        ]
        times = [sample.ttft_s for sample in late if sample.ttft_s is not None]
        found.append(
            Summary(
                how,
                median(s.up_bytes for s in mine if s.turn == min(3, last)),
                median(s.up_bytes for s in ends),
                median(times) if times else None,
                None if how == "chat" or not less else _quartiles(less),
                median(s.prompt_tokens for s in ends),
                median(s.cached_tokens for s in ends),
                _as_ids(mine, at),
                len(mine),
            )
        )
    return found


def _quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    return (quantile(values, 0.25) or 0.0, median(values), quantile(values, 0.75) or 0.0)


def _as_ids(mine: Sequence[Sample], at: dict[tuple[str, int, int], Sample]) -> int:
    """Turns with the text of `ids`, in each round until the first that has another: from then on
    the prompts are not the same."""
    same = 0
    parted: set[int] = set()
    for sample in sorted(mine, key=lambda sample: sample.turn):
        if sample.text != at[("ids", sample.round, sample.turn)].text:
            parted.add(sample.round)
        same += sample.round not in parted
    return same


# -- the command


def table(found: Sequence[Summary]) -> Table:
    """For people; what is less than the chat's is a median, with the quartiles."""
    shown = Table(header_style="bold")
    for name in ("way", "bytes at 3", "at last", "TTFT, ms", "less than chat, ms", "prompt",
                 "cached", "as ids"):  # fmt: skip
        shown.add_column(name, justify="right")
    for each in found:
        ttft = "-" if each.ttft_p50_s is None else f"{each.ttft_p50_s * 1e3:.1f}"
        less = "-"
        if each.less_than_chat_s is not None:
            low, middle, high = (seconds * 1e3 for seconds in each.less_than_chat_s)
            less = f"{middle:.1f} ({low:.1f}, {high:.1f})"
        shown.add_row(
            each.how, f"{each.third_bytes:,.0f}", f"{each.last_bytes:,.0f}", ttft, less,
            f"{each.prompt_tokens:,.0f}", f"{each.cached_tokens:,.0f}",
            f"{each.as_ids}/{each.turns}",
        )  # fmt: skip
    return shown


def main() -> None:
    """The command; its defaults are those of `Setup`."""
    fields: dict[str, Any] = {field.name: field.default for field in msgspec.structs.fields(Setup)}
    parser = argparse.ArgumentParser(prog="python -m sessile.lab.engine_sessions")
    parser.add_argument("--replica", required=True, help="an SGLang, http://HOST:PORT")
    parser.add_argument("--turns", type=int, default=fields["turns"])
    parser.add_argument("--rounds", type=int, default=fields["rounds"])
    parser.add_argument("--system", type=int, default=fields["system_tokens"], help="its tokens")
    parser.add_argument("--result", type=int, default=fields["result_tokens"], help="its tokens")
    parser.add_argument("--output", type=int, default=fields["output_tokens"])
    parser.add_argument("--round-trip", type=float, default=0.0, help="to the replica, in ms")
    parser.add_argument("--mbit", type=float, help="of the line to it, a second")
    parser.add_argument("--pid", type=int, help="the server's: tell its CPU, not the time")
    parser.add_argument("--seed", type=int, default=fields["seed"])
    parser.add_argument("--json", action="store_true", help="every turn instead of the table")
    given = parser.parse_args()
    setup = Setup(
        url=given.replica.rstrip("/").removesuffix("/v1"), turns=given.turns, rounds=given.rounds,
        system_tokens=given.system, result_tokens=given.result, output_tokens=given.output,
        round_trip_ms=given.round_trip, mbit=given.mbit, pid=given.pid,
        seed=given.seed, name=f"{time.time_ns():x}",
    )  # fmt: skip
    try:
        samples = asyncio.run(compare(setup))
    except SessileError as error:
        sys.exit(f"error: {error.message}")
    except httpx2.HTTPError as error:
        sys.exit(f"error: the engine hung up: {error}; see its log")
    if given.json:
        sys.stdout.write(msgspec.json.encode(samples).decode() + "\n")
    else:
        Console().print(table(summed(samples)))


if __name__ == "__main__":
    main()
