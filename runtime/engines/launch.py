"""What `sessile up` starts: pools, the machine and the installed engines become commands. Pure.

Each engine's flags are in a file of its own; here they are put together with the environment, the
user's `args` (which win), and what this version of the engine lacks, which is told.
"""

import json
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import msgspec

from sessile.engines import sglang_flags, vllm_flags
from sessile.engines.base import reachable
from sessile.engines.flags import given, merge
from sessile.engines.lora import AdapterFacts
from sessile.engines.model_facts import ModelFacts
from sessile.engines.seat import Installed, Machine, Seat, share_gpus, shares
from sessile.engines.speculation import adapts, check_draft, settle, spread, takes_model
from sessile.errors import SettingsError
from sessile.pool_settings import PoolSettings, SpeculationSettings
from sessile.router.engine import FeedSource
from sessile.router.replica import ReplicaSpec

_ENGINES = {"sglang": sglang_flags, "vllm": vllm_flags}
_HOST_SHARE = 0.5  # of the free host memory, for the host caches of all replicas together
_STOP_S = 20.0
_RANK_FLAGS = ("--dp-size", "--data-parallel-size", "--attn-dp-size")
_NAMES = {"sglang": "SGLang", "vllm": "vLLM"}


class Launch(msgspec.Struct, frozen=True, kw_only=True):
    """A replica to start: its command, the variables set over ours, and how it is reached.

    `tree` is whether it starts processes of its own, which are to go with it, `speculation` how it
    speculates, if it does, `device` what it runs on, where that is its own or shared by name,
    `feed` where it is to publish its KV events.
    """

    id: str
    engine: str
    model: str
    url: str
    command: tuple[str, ...]
    env: Mapping[str, str] = {}
    first_on_path: str | None = None
    folder: str | None = None
    pool: str | None = None
    standby: bool = False
    tree: bool = False
    speculation: str | None = None
    device: str | None = None
    feed: FeedSource | None = None
    stop_s: float = 5.0

    @property
    def spec(self) -> ReplicaSpec:
        """The replica as the pool is told of it; its incarnation comes with its first start."""
        return ReplicaSpec(
            id=self.id, engine=self.engine, url=self.url, model=self.model,
            incarnation="starting", folder=self.folder,
            speculates=self.speculation is not None, device=self.device, feed=self.feed,
            pool=self.pool, standby=self.standby,
        )  # fmt: skip

    def shown(self) -> str:
        """The command as it can be pasted into a shell."""
        words = [f"{name}={shlex.quote(value)}" for name, value in self.env.items()]
        if self.first_on_path:
            words.insert(0, f'PATH={shlex.quote(self.first_on_path)}:"$PATH"')
        return " ".join([*words, shlex.join(self.command)])


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """A pool to start, with what was found out about its model, its draft and its engine, and all
    adapters that are declared."""

    pool: PoolSettings
    model: ModelFacts
    draft: ModelFacts | None
    installed: Installed
    adapters: tuple[AdapterFacts, ...] = ()

    @property
    def served_name(self) -> str:
        """The name that its model is served under."""
        theirs = given(self.pool.args, self.installed.flags)
        return theirs.get("--served-model-name") or self.model.name


def plan(
    asked: Sequence[Asked], machine: Machine, ports: Callable[[int, int], list[int]], first: int = 0
) -> tuple[list[Launch], list[str]]:
    """The replicas of `asked`, numbered from `first`, and what is to be told about them.

    `ports` gives so many free ones, each the first of a run of so many. Raises `SettingsError`.
    """
    pools = [each.pool for each in asked]
    placed = share_gpus(pools, machine)
    shared = shares(pools, placed)
    total = sum(map(len, placed))
    ranks = sum(len(places) * p.data_parallel for p, places in zip(pools, placed, strict=True))
    sizes = {gpu.number: gpu.memory_bytes for gpu in machine.gpus}
    launches: list[Launch] = []
    notes: list[str] = []
    for each, places, parts in zip(asked, placed, shared, strict=True):
        _check_draft(each)
        fixed = _fixed_port(each, len(places))
        tasks, note = _spread(each, places)
        if note is not None:
            notes.append(f"{each.model.name}: {note}")
        for gpus, (share, alone), task in zip(places, parts, tasks, strict=True):
            port, events, replay = ports(3, _ranks(each))
            seat = Seat(
                pool=each.pool.model_copy(update={"speculation": task}), model=each.model,
                draft=each.draft if task.method != "off" else None, installed=each.installed,
                adapters=tuple(a for a in each.adapters if a.base == each.served_name),
                gpus=gpus, gpu_bytes=min((sizes[gpu] for gpu in gpus), default=0),
                share=share, alone=alone, host_bytes=int(machine.host_bytes * _HOST_SHARE / total),
                cores=max(1, machine.cores // ranks), ranks=_ranks(each), port=fixed or port,
                events_port=events, replay_port=replay,
            )  # fmt: skip
            name = f"local-{first + len(launches)}"
            launch, said = _launch(seat, name, each.served_name, bool(machine.gpus))
            launches.append(launch)
            notes += [note for note in said if note not in notes]
    return launches, notes


def _check_draft(asked: Asked) -> None:
    """Raise `SettingsError` for a draft that its engine would refuse after it has loaded both."""
    draft, installed = asked.draft, asked.installed
    if draft is None or not takes_model(settle(asked.pool.speculation, asked.model, draft)):
        return
    label = f"{_NAMES[asked.pool.engine]} {installed.version}"
    check_draft(asked.model, draft, label, maps_tokens=installed.maps_tokens)


def _spread(
    asked: Asked, places: Sequence[Sequence[int]]
) -> tuple[list[SpeculationSettings], str | None]:
    """Which of the pool's replicas speculate. SGLang does not on a CPU."""
    wanted = asked.pool.speculation
    method = settle(wanted, asked.model, asked.draft)
    sglang = asked.pool.engine == "sglang"
    if sglang and not any(places):
        method = "off"
    alone = sglang and adapts(method, asked.installed.flags)
    return spread(wanted, [tuple(gpus) or n for n, gpus in enumerate(places)], method, adapts=alone)


def _launch(seat: Seat, name: str, served_name: str, any_gpu: bool) -> tuple[Launch, list[str]]:
    pool, installed = seat.pool, seat.installed
    engine = _ENGINES[pool.engine]
    flags, notes = engine.flags(seat)
    line, lacking = merge(flags, pool.args, installed.flags)
    if lacking:
        label = f"{_NAMES[pool.engine]} {installed.version}"
        notes.append(f"{label} lacks {', '.join(lacking)}: left out")
    theirs = given(pool.args, installed.flags)
    if strange := [flag for flag in theirs if flag not in installed.flags]:
        # An engine takes a minute to say so; but it may know more than it lists.
        label = f"{_NAMES[pool.engine]} {installed.version}"
        notes.append(f"pool.args: {label} does not list {', '.join(strange)}")
    start = [installed.python, "-m", engine.MODULE]
    if pool.engine == "vllm":
        start += ["serve", seat.model.source]
    env = {"OMP_NUM_THREADS": str(seat.cores)}
    if any_gpu:  # by the numbers that the driver gives, which CUDA alone would reorder
        env = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
        env["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, seat.gpus))
    env |= engine.environment(seat)
    env |= {name: value.get_secret_value() for name, value in pool.env.items()}
    # Of several ranks only their server knows which publishes where.
    feed = _feed(given(line, installed.flags)) if seat.ranks == 1 else None
    return Launch(
        id=name, engine=pool.engine, url=f"http://127.0.0.1:{seat.port}",
        model=served_name,
        command=(*start, *line), env=env, first_on_path=str(Path(installed.python).parent),
        tree=True, stop_s=_STOP_S, speculation=_speculation(line),
        device=",".join(map(str, seat.gpus)) or None, feed=feed,
        pool=pool.name, standby=pool.standby,
    ), notes  # fmt: skip


def _ranks(asked: Asked) -> int:
    """How many ports in a row the server's KV events take: one a rank, of whatever kind."""
    known = asked.installed.flags
    theirs = given(asked.pool.args, known)
    told = [theirs.get(known.first(flag), "") for flag in _RANK_FLAGS]
    return max([asked.pool.data_parallel, *(int(text) for text in told if text.isdecimal())])


def _feed(told: Mapping[str, str]) -> FeedSource | None:
    """Where the engine is to publish its KV events, by us or by the user's `args`."""
    with suppress(ValueError):
        match json.loads(told.get("--kv-events-config", "")):
            case {"publisher": "zmq", "endpoint": endpoint, **rest} if (
                published := reachable(endpoint, "127.0.0.1")
            ) is not None:
                return FeedSource(
                    endpoint=published,
                    replay=reachable(rest.get("replay_endpoint"), "127.0.0.1"),
                    topic=str(rest.get("topic", "")),
                )
    return None


def _speculation(line: Sequence[str]) -> str | None:
    """How the engine is to speculate, ours or the user's `args`, by its own word for it."""
    for flag, value in zip(line, line[1:], strict=False):
        if flag == "--speculative-algorithm":
            return value
        if flag == "--speculative-config":
            return "by its config"
    return None


def _fixed_port(asked: Asked, replicas: int) -> int | None:
    """The port that `args` asks for, which only one replica can have."""
    text = given(asked.pool.args, asked.installed.flags).get("--port")
    if text is None:
        return None
    if not re.fullmatch(r"\d{1,5}", text) or replicas > 1:
        raise SettingsError(
            f"pool.args: --port {text} is not a port that {replicas} replicas can have; leave it "
            "out, and each gets a free one"
        )
    return int(text)
