"""The command line of an SGLang replica (0.5.17 to 0.5.23) that serves a session router. Pure."""

import json

from sessile.engines import lora, speculation
from sessile.engines.flags import Flag, given
from sessile.engines.parsers import reasoning_parser, tool_parser
from sessile.engines.seat import Seat
from sessile.errors import SettingsError

MODULE = "sglang.launch_server"
_PAGE_TOKENS = 16  # one KV event a page: with pages of one token the feed is a flood
_BREADTH = "--speculative-ngram-max-bfs-breadth"
_POOL_SHARE = 0.95  # of the free memory, where the number of tokens is what bounds it
_AUTO_POOL_SHARE = 0.85  # of a GPU, about what SGLang takes for weights and KV memory by itself
_HOST_RATIO = 2.0  # as measured; more was not tried
_LEAST_HOST_RATIO = 1.1  # SGLang refuses a host cache smaller than the KV memory


def flags(seat: Seat) -> tuple[list[Flag], list[str]]:
    """Our flags for the replica in `seat`, and what is to be told about them."""
    pool, model, known = seat.pool, seat.model, seat.installed.flags
    theirs = given(pool.args, known)
    ours: list[Flag] = [
        ("--model-path", model.source),
        ("--served-model-name", model.name),
        ("--host", "127.0.0.1"),
        ("--port", str(seat.port)),
        ("--log-level-http", "warning"),  # else the probes fill the log
        ("--enable-metrics", None),
        ("--enable-cache-report", None),
    ]
    if pool.tensor_parallel > 1:
        ours.append(("--tp-size", str(pool.tensor_parallel)))
    if pool.data_parallel > 1:
        ours.append(("--dp-size", str(pool.data_parallel)))
    if pool.context_tokens is not None:
        ours.append(("--context-length", str(pool.context_tokens)))
    if pool.slots is not None:
        ours.append(("--max-running-requests", str(pool.slots)))
    if not seat.gpus:
        # Its idle scheduler would keep a core busy, which the others compute with.
        ours += [("--device", "cpu"), ("--sleep-on-idle", None)]
    cached = "--disable-radix-cache" not in theirs
    notes: list[str] = []
    drafts = speculation.sglang(pool.speculation, model, seat.draft, cpu=not seat.gpus, known=known)
    if cached and ("--speculative-algorithm", "NGRAM") in drafts and _BREADTH not in theirs:
        # It drafts trees, which SGLang verifies with pages of one token only.
        notes.append("SGLang drafts n-grams in pages of one token: its KV events are left out")
    elif cached:
        events, note = _events(seat)
        ours += [("--page-size", str(_PAGE_TOKENS)), ("--kv-events-config", events)]
        notes += note
    if cached:
        # What the router models, and the only one by which what waits is used already; by priority,
        # SGLang's choice for some models, what was prewarmed behind all turns would go first.
        ours.append(("--radix-eviction-policy", "lru"))
        if "--radix-cache-backend" not in theirs:
            ours.append(("--enable-session-radix-cache", None))
    if theirs.get("--schedule-policy", "fcfs") in ("fcfs", "lof"):  # SGLang refuses the others
        # An urgent turn goes first in the queue; it does not throw out one that runs.
        ours += [("--enable-priority-scheduling", None), ("--disable-priority-preemption", None)]
    ours += _parsers(seat)
    ours += _memory(seat, theirs)
    if cached and seat.gpus and "--enable-hierarchical-cache" not in theirs:
        host, note = _host_cache(seat, theirs)
        ours += host
        notes += note
    adapted, note = lora.sglang(seat.adapters, theirs, known, cpu=not seat.gpus)
    return ours + adapted + drafts, notes + note


def environment(seat: Seat) -> dict[str, str]:
    """The variables that SGLang wants beside those of every engine. NOTE: up to 0.5.17 the cache
    that knows sessions and has host memory, too, is only made where its variable asks for it; newer
    ones make no other."""
    wanted = "SGLANG_ENABLE_UNIFIED_RADIX_TREE" if seat.gpus else "SGLANG_USE_CPU_ENGINE"
    return {wanted: "1"}


def _events(seat: Seat) -> tuple[str, list[str]]:
    """An SGLang that cannot be told to bind binds only a wildcard, which all interfaces reach."""
    host = "127.0.0.1" if seat.installed.binds else "*"
    told: dict[str, object] = {
        "publisher": "zmq",
        "endpoint": f"tcp://{host}:{seat.events_port}",
        "replay_endpoint": f"tcp://{host}:{seat.replay_port}",
    }
    if seat.installed.binds:
        told["bind"] = True
        return json.dumps(told, separators=(",", ":")), []
    note = f"SGLang {seat.installed.version} publishes its KV events on every interface"
    return json.dumps(told, separators=(",", ":")), [note]


def _parsers(seat: Seat) -> list[Flag]:
    """SGLang's own detection where it has one, which knows its newest models."""
    known = seat.installed.flags
    found: list[Flag] = []
    for flag, finder in (
        ("--tool-call-parser", tool_parser), ("--reasoning-parser", reasoning_parser)
    ):  # fmt: skip
        auto = "auto" in known.choices.get(flag, ())
        if name := "auto" if auto else finder("sglang", seat.model):
            found.append((flag, name))
    return found


def _memory(seat: Seat, theirs: dict[str, str]) -> list[Flag]:
    """SGLang's own fraction is of what is free when it starts, which for replicas that start
    together, or again, is anything: those that share a GPU are bounded in tokens."""
    if seat.share is None or {"--max-total-tokens", "--mem-fraction-static"} & theirs.keys():
        return []
    if seat.alone:
        return [("--mem-fraction-static", f"{seat.share:g}")]
    kv_bytes, each = seat.kv_bytes(), seat.model.kv_token_bytes
    if kv_bytes is None or each is None:
        raise SettingsError(
            f"model: {seat.model.source} is not a local folder, so its share of a GPU cannot be "
            "counted: give args = [\"--max-total-tokens\", \"N\"], or the folder"
        )  # fmt: skip
    tokens = kv_bytes * seat.pool.tensor_parallel // each // _PAGE_TOKENS * _PAGE_TOKENS
    return [("--max-total-tokens", str(tokens)), ("--mem-fraction-static", f"{_POOL_SHARE:g}")]


def _host_cache(seat: Seat, theirs: dict[str, str]) -> tuple[list[Flag], list[str]]:
    """HiCache as a ratio, which the router can read back as tokens, within the host's memory."""
    gpus, each = seat.pool.tensor_parallel, seat.model.kv_token_bytes
    if (asked := theirs.get("--max-total-tokens", "")).isdigit() and each:
        held = int(asked) * each
    elif not seat.alone and (kv_bytes := seat.kv_bytes()) is not None:
        held = kv_bytes * gpus
    else:
        taken = round(seat.gpu_bytes * _AUTO_POOL_SHARE) * gpus
        held = max(taken - (seat.model.weight_bytes or 0), taken // 4)
    held *= seat.pool.data_parallel  # each rank has such a cache
    ratio = int(min(seat.host_bytes / held, _HOST_RATIO) * 10) / 10
    if ratio < _LEAST_HOST_RATIO:
        gb = seat.host_bytes / 1e9
        return [], [f"no host cache: {gb:.0f} GB of host memory are less than the KV memory"]
    return [("--enable-hierarchical-cache", None), ("--hicache-ratio", f"{ratio:g}")], []
