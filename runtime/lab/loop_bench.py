"""A tool loop over the Responses WebSocket against stateless HTTP, before a router that runs.

`python -m sessile.lab.loop_bench --url http://localhost:8000` runs the same loop both ways, one
after the other: what the client sends in each turn, and the time to its first token. With
`--round-trip 40 --mbit 10` it goes over a slow line: a proxy (see `link`), or with `--namespace`
one between network namespaces (see `namespace`; root, Linux). `--prewarm` measures the turn after a
large tool result instead, with the result prewarmed during the pause and without.

Tools are called where the model calls them (`--force` makes it); otherwise the result is given as
the user's words, of the same size. Each loop is a conversation of its own, so that neither finds
what the other left in a cache.
"""

import argparse
import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from random import Random
from statistics import median
from typing import Any
from urllib.parse import urlsplit

import httpx2
import msgspec
from rich.console import Console
from rich.table import Table

from sessile.errors import RouterUnreachable, SessileError
from sessile.lab.link import Link, serve_link
from sessile.lab.loop_ways import open_way
from sessile.lab.namespace import far_away

_LATE = 20  # from which turn on the prompt is long
_WORDS = ("file", "line", "error", "test", "value", "index", "class", "build", "node", "path")
_TOOL = {
    "type": "function", "name": "read", "description": "Read a file.", "strict": False,
    "parameters": {
        "type": "object", "properties": {"path": {"type": "string"}}, "required": ["path"],
    },
}  # fmt: skip


class Setup(msgspec.Struct, frozen=True, kw_only=True):
    """`result_tokens` is the size of a tool result, in tokens of four characters; `name` tells the
    conversations of one run from those of all others."""

    url: str
    model: str
    key: str = "none"
    turns: int = 30
    rounds: int = 3
    result_tokens: int = 300
    system_tokens: int = 1_000
    output_tokens: int = 32
    round_trip_ms: float = 0.0
    mbit: float | None = None
    slow_start: bool = False
    namespace: bool = False
    force: bool = False
    pause_s: float = 3.0
    seed: int = 1
    name: str = "bench"


class Sample(msgspec.Struct, frozen=True):
    """One turn of a loop. Token counts are the engine's; `up_bytes` is what the client sent."""

    how: str
    turn: int
    up_bytes: int
    ttft_s: float | None
    prompt_tokens: int
    cached_tokens: int


class Summary(msgspec.Struct, frozen=True):
    """One way's figures: bytes a turn at the third and at the last, TTFT of the late turns."""

    how: str
    third_bytes: float
    last_bytes: float
    late_ttft_p50_s: float | None
    prompt_tokens: int
    cached_share: float | None


# -- the loop


async def run_loop(how: str, link: Link, setup: Setup, number: int) -> list[Sample]:
    """One tool loop; `number` makes it a conversation of its own."""
    settings = _settings(setup, f"{how[0]}{number}")
    samples = []
    async with open_way(how, link.port, setup.key) as way:
        task = f'Task {number}: call read {{"path": "a.py"}} {setup.turns - 1} times'
        items: list[Any] = [_user(task)]
        for turn in range(1, setup.turns + 1):
            before = link.up_bytes
            said = await way.turn(items, settings)
            usage = said.response["usage"] or {}
            samples.append(
                Sample(
                    how, turn, link.up_bytes - before, said.ttft_s, usage.get("input_tokens", 0),
                    (usage.get("input_tokens_details") or {}).get("cached_tokens", 0),
                )
            )  # fmt: skip
            items = _results(said.response, made_text(setup.result_tokens, setup.seed + turn))
    return samples


async def compare(setup: Setup) -> list[Sample]:
    """Both ways in turns, as often as asked, over lines of one kind."""
    samples: list[Sample] = []
    async with _line(setup) as link:
        for number in range(setup.rounds):
            for how in ("websocket", "http") if number % 2 == 0 else ("http", "websocket"):
                samples += await run_loop(how, link, setup, number)
    return samples


def summed(samples: Sequence[Sample]) -> list[Summary]:
    """The figures of each way; None where nothing was measured."""
    found = []
    for how in ("websocket", "http"):
        mine = [sample for sample in samples if sample.how == how]
        last = max(sample.turn for sample in mine)
        late = [s.ttft_s for s in mine if s.turn >= min(_LATE, last) and s.ttft_s is not None]
        prompt = sum(sample.prompt_tokens for sample in mine)
        cached = sum(sample.cached_tokens for sample in mine)
        found.append(
            Summary(
                how,
                median(s.up_bytes for s in mine if s.turn == min(3, last)),
                median(s.up_bytes for s in mine if s.turn == last),
                median(late) if late else None,
                max(sample.prompt_tokens for sample in mine),
                cached / prompt if prompt else None,
            )
        )
    return found


# -- prewarming


async def prewarmed(setup: Setup) -> dict[str, float]:
    """TTFT p50 of the turn after a large tool result, in seconds from the end of the pause: with
    the result prewarmed during it, and without. A prewarming that outlasts the pause is waited
    for, and counts."""
    found: dict[str, list[float]] = {"prewarmed": [], "cold": []}
    async with _line(setup) as link:
        for number in range(setup.rounds):
            for how, times in found.items():
                settings = _settings(setup, f"{how[0]}{number}")
                async with open_way("websocket", link.port, setup.key) as way:
                    task = [_user('call read {"path": "a.py"}')]
                    said = await way.turn(task, settings)
                    result = _results(said.response, made_text(setup.result_tokens, number))
                    back_at = time.perf_counter() + setup.pause_s
                    if how == "prewarmed":
                        await way.turn(result, settings | {"generate": False})
                        result = []
                    late_s = time.perf_counter() - back_at
                    await asyncio.sleep(max(0.0, -late_s))
                    said = await way.turn([*result, _user("Go on.")], settings)
                    if said.ttft_s is not None:
                        times.append(max(0.0, late_s) + said.ttft_s)
    return {how: median(times) for how, times in found.items() if times}


# -- what is said


def _settings(setup: Setup, name: str) -> dict[str, Any]:
    """What every turn of an agent sends: its instructions and its tools."""
    system = f"You are agent {setup.name}-{name}. {made_text(setup.system_tokens, setup.seed)}"
    settings = {
        "model": setup.model, "instructions": system, "tools": [_TOOL],
        "max_output_tokens": setup.output_tokens, "temperature": 0,
    }  # fmt: skip
    return settings | ({"tool_choice": "required"} if setup.force else {})


def made_text(tokens: int, seed: int) -> str:
    """So many tokens of four characters; other words for another seed."""
    random = Random(seed)
    words: list[str] = []
    size = 0
    while size < tokens * 4:
        words.append(f"{random.choice(_WORDS)}{random.randrange(100)}")
        size += len(words[-1]) + 1
    return " ".join(words)


def _user(text: str) -> dict[str, Any]:
    return {"type": "message", "role": "user", "content": text}


def _results(response: dict[str, Any], text: str) -> list[Any]:
    """The outputs of what the model called, else the same as the user's words."""
    calls = [item for item in response["output"] if item["type"] == "function_call"]
    if not calls:
        return [_user(f"Result: {text}")]
    return [
        {"type": "function_call_output", "call_id": call["call_id"],
         "output": text if index == 0 else "nothing"}
        for index, call in enumerate(calls)
    ]  # fmt: skip


@asynccontextmanager
async def _line(setup: Setup) -> AsyncIterator[Link]:
    parts = urlsplit(setup.url)
    target = (parts.hostname or "127.0.0.1", parts.port or 80)
    round_trip_s = setup.round_trip_ms / 1_000
    bits_per_s = None if setup.mbit is None else setup.mbit * 1e6
    async with AsyncExitStack() as stack:
        if setup.namespace:
            line = far_away(target, round_trip_s=round_trip_s, bits_per_s=bits_per_s)
            target = await stack.enter_async_context(line)
            yield await stack.enter_async_context(serve_link(target))
        else:
            link = serve_link(target, round_trip_s=round_trip_s, bits_per_s=bits_per_s,
                              slow_start=setup.slow_start)  # fmt: skip
            yield await stack.enter_async_context(link)


# -- the command


def table(found: Sequence[Summary]) -> Table:
    """For people."""
    shown = Table(header_style="bold")
    for name in ("way", "bytes at turn 3", "at the last", f"TTFT p50 from turn {_LATE}, s",
                 "longest prompt", "cached"):  # fmt: skip
        shown.add_column(name, justify="right")
    for each in found:
        ttft = "-" if each.late_ttft_p50_s is None else f"{each.late_ttft_p50_s:.3f}"
        share = "-" if each.cached_share is None else f"{each.cached_share:.3f}"
        shown.add_row(each.how, f"{each.third_bytes:,.0f}", f"{each.last_bytes:,.0f}", ttft,
                      f"{each.prompt_tokens:,}", share)  # fmt: skip
    return shown


def main() -> None:
    """The command; its defaults are those of `Setup`, and 3,000 tokens for `--prewarm`."""
    fields = {field.name: field.default for field in msgspec.structs.fields(Setup)}
    parser = argparse.ArgumentParser(prog="python -m sessile.lab.loop_bench")
    parser.add_argument("--url", required=True, help="of a router, http://HOST:PORT")
    parser.add_argument("--model", help="default: the first that the router serves")
    parser.add_argument("--key", default=fields["key"])
    parser.add_argument("--turns", type=int, default=fields["turns"])
    parser.add_argument("--rounds", type=int, default=fields["rounds"])
    parser.add_argument("--result", type=int, help="tokens of a tool result")
    parser.add_argument("--system", type=int, default=fields["system_tokens"])
    parser.add_argument("--output", type=int, default=fields["output_tokens"])
    parser.add_argument("--round-trip", type=float, default=0.0, help="of the line, in ms")
    parser.add_argument("--mbit", type=float, help="of the line, a second")
    parser.add_argument("--slow-start", action="store_true", help="the line's TCP starts slowly")
    parser.add_argument(
        "--namespace",
        action="store_true",
        help="the line is one between network namespaces (root, Linux)",
    )
    parser.add_argument("--force", action="store_true", help="the model must call the tool")
    parser.add_argument("--prewarm", action="store_true")
    parser.add_argument("--pause", type=float, default=fields["pause_s"], help="in s")
    parser.add_argument("--seed", type=int, default=fields["seed"])
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    try:
        url = given.url.rstrip("/").removesuffix("/v1")
        setup = Setup(
            url=url, model=given.model or _first_model(url, given.key), key=given.key,
            turns=given.turns, rounds=given.rounds,
            result_tokens=given.result or (3_000 if given.prewarm else fields["result_tokens"]),
            system_tokens=given.system, output_tokens=given.output, round_trip_ms=given.round_trip,
            mbit=given.mbit, force=given.force, pause_s=given.pause, seed=given.seed,
            slow_start=given.slow_start, namespace=given.namespace, name=f"{time.time_ns():x}",
        )  # fmt: skip
        if given.prewarm:
            times = asyncio.run(prewarmed(setup))
            said = {f"ttft_p50_s_{how}": seconds for how, seconds in times.items()}
            sys.stdout.write(json.dumps(said) + "\n")
            return
        samples = asyncio.run(compare(setup))
    except SessileError as error:
        sys.exit(f"error: {error.message}")
    if given.json:
        sys.stdout.write(msgspec.json.encode(samples).decode() + "\n")
    else:
        Console().print(table(summed(samples)))


def _first_model(url: str, key: str) -> str:
    try:
        reply = httpx2.get(f"{url}/v1/models", headers={"authorization": f"Bearer {key}"})
        models = reply.raise_for_status().json()["data"]
    except (httpx2.HTTPError, ValueError, LookupError) as error:
        raise RouterUnreachable(f"{url} is no router that answers: {error}") from error
    if not models:
        raise RouterUnreachable(f"{url} serves no model yet: name one with --model, or wait")
    return str(models[0]["id"])


if __name__ == "__main__":
    main()
