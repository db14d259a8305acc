"""The command line of a vLLM replica (0.32) that serves a session router. Pure."""

import json

from sessile.engines import lora, speculation
from sessile.engines.flags import Flag, given
from sessile.engines.model_facts import ModelFacts
from sessile.engines.parsers import reasoning_parser, tool_parser
from sessile.engines.seat import Seat

MODULE = "vllm.entrypoints.cli.main"
_CPU_BLOCK_TOKENS = 32  # the least that it takes on a CPU; by default it caches blocks of 128


def flags(seat: Seat) -> tuple[list[Flag], list[str]]:
    """Our flags for the replica in `seat`, and what is to be told about them."""
    pool, model = seat.pool, seat.model
    theirs = given(pool.args, seat.installed.flags)
    notes: list[str] = []
    ours: list[Flag] = [
        ("--served-model-name", model.name),
        ("--host", "127.0.0.1"),
        ("--port", str(seat.port)),
        ("--disable-uvicorn-access-log", None),  # else the probes fill the log
        ("--enable-prompt-tokens-details", None),
        ("--scheduling-policy", "priority"),
    ]
    if pool.tensor_parallel > 1:
        ours.append(("--tensor-parallel-size", str(pool.tensor_parallel)))
    if pool.data_parallel > 1:
        # By default it has an API server a rank: these tell no time of their start, and load no
        # adapters while they run.
        ours += [("--data-parallel-size", str(pool.data_parallel)), ("--api-server-count", "1")]
    if pool.context_tokens is not None:
        ours.append(("--max-model-len", str(pool.context_tokens)))
    if pool.slots is not None:
        ours.append(("--max-num-seqs", str(pool.slots)))
    if not seat.gpus:
        ours.append(("--block-size", str(_CPU_BLOCK_TOKENS)))
    if "--no-enable-prefix-caching" not in pool.args:
        events, note = _events(seat)
        ours += [("--enable-prefix-caching", None), ("--kv-events-config", events)]
        notes += note
    if name := tool_parser("vllm", model):
        ours += [("--enable-auto-tool-choice", None), ("--tool-call-parser", name)]
    elif "--tool-call-parser" not in theirs and _may_call(model):
        notes.append(
            f"{model.name}: no parser of its tool calls is known: they come as text; name one by "
            'args = ["--enable-auto-tool-choice", "--tool-call-parser", "NAME"]'
        )
    if name := reasoning_parser("vllm", model):
        ours.append(("--reasoning-parser", name))
    ours += _memory(seat, theirs)
    adapted, note = lora.vllm(seat.adapters, theirs, seat.installed.flags)
    drafts = speculation.vllm(pool.speculation, model, seat.draft)
    return ours + adapted + drafts, notes + note


def environment(seat: Seat) -> dict[str, str]:
    """The variables that vLLM wants beside those of every engine: adapters are loaded while it runs
    only with one."""
    theirs = given(seat.pool.args, seat.installed.flags)
    if not seat.adapters and "--enable-lora" not in theirs:
        return {}
    return {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1"}


def _may_call(model: ModelFacts) -> bool:
    """Whether the model may write tool calls: a template that has no word for tools shows none."""
    return not model.template or "tool" in model.template


def _events(seat: Seat) -> tuple[str, list[str]]:
    """A vLLM that is to publish at one address of its machine connects there, and nobody hears it.
    It binds a wildcard, which all interfaces reach, or a Unix socket (here without a file), which
    several ranks cannot share."""
    several, port = seat.ranks > 1, seat.events_port
    told = {
        "enable_kv_cache_events": True,
        "publisher": "zmq",
        "endpoint": f"tcp://*:{port}" if several else f"ipc://@sessile-{port}",
        "replay_endpoint": f"tcp://127.0.0.1:{seat.replay_port}",
    }
    note = "vLLM publishes the KV events of several ranks on every interface"
    return json.dumps(told, separators=(",", ":")), [note] if several else []


def _memory(seat: Seat, theirs: dict[str, str]) -> list[Flag]:
    """What vLLM measures of a GPU while another replica starts there is not its own: those that
    share one are told their KV memory, where the model's files let it be counted."""
    found: list[Flag] = []
    own = {"--gpu-memory-utilization", "--kv-cache-memory-bytes"} & theirs.keys()
    if seat.share is not None and not own:
        found.append(("--gpu-memory-utilization", f"{seat.share:g}"))
        if not seat.alone and (kv_bytes := seat.kv_bytes()) is not None:
            found.append(("--kv-cache-memory-bytes", str(kv_bytes)))
    return found
