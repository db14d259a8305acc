"""Where one replica sits: its share of the machine, its ports, its model and its engine's version.

Pure. GPUs are shared out here: to each pool those that it names, or so many, or what is left, and
within a pool to its replicas in turn.
"""

import math
from collections import Counter
from collections.abc import Sequence

import msgspec

from sessile.engines.flags import Flags
from sessile.engines.lora import AdapterFacts
from sessile.engines.model_facts import ModelFacts
from sessile.errors import SettingsError
from sessile.pool_settings import PoolSettings

_SHARED = 0.9  # of a GPU's memory, for all replicas on it together
_OVERHEAD_BYTES = 2 * 2**30  # of a replica on a shared GPU: context, kernels, graphs, activations


class Gpu(msgspec.Struct, frozen=True):
    """A GPU by the number that its driver gives it."""

    number: int
    memory_bytes: int


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    """What this machine has to share out."""

    gpus: tuple[Gpu, ...] = ()
    host_bytes: int = 0
    """Memory that is free, or can be made so."""
    cores: int = 1


class Installed(msgspec.Struct, frozen=True, kw_only=True):
    """An engine as it is installed in the environment of `python`."""

    python: str
    version: str
    flags: Flags
    binds: bool = True
    """Whether its KV events can be told to bind a concrete address."""
    maps_tokens: bool = False
    """Whether it can take a draft model whose vocabulary has another size."""


class Seat(msgspec.Struct, frozen=True, kw_only=True):
    """One replica's place. `share` is of each of its GPUs' memory; None leaves it to the engine."""

    pool: PoolSettings
    model: ModelFacts
    draft: ModelFacts | None
    installed: Installed
    adapters: tuple[AdapterFacts, ...]
    """Those of its model."""
    gpus: tuple[int, ...]
    gpu_bytes: int
    share: float | None
    alone: bool
    """Whether no other replica is on its GPUs."""
    host_bytes: int
    """Its share of the host's memory for a cache."""
    cores: int
    ranks: int
    """How many its server has; each publishes KV events, at a port of its own."""
    port: int
    events_port: int
    replay_port: int

    def kv_bytes(self) -> int | None:
        """What its share of a GPU leaves for KV memory, a GPU. Raises `SettingsError` if that is
        nothing."""
        if self.share is None or self.model.weight_bytes is None:
            return None
        weights = self.model.weight_bytes // self.pool.tensor_parallel
        if self.draft is not None:
            weights += self.draft.weight_bytes or 0
        left = int(self.share * self.gpu_bytes) - weights - _OVERHEAD_BYTES
        if left <= 0:
            raise SettingsError(
                f"memory: {self.share:.2f} of {self.gpu_bytes / 1e9:.0f} GB does not hold "
                f"{self.model.name} ({weights / 1e9:.1f} GB of weights a GPU): start fewer "
                "replicas, or spread them with tensor_parallel"
            )
        return left


def share_gpus(pools: Sequence[PoolSettings], machine: Machine) -> list[list[tuple[int, ...]]]:
    """The GPUs of every replica of every pool; none for those on the CPU. Raises
    `SettingsError`."""
    free = [gpu.number for gpu in machine.gpus]
    for pool in pools:
        for number in pool.gpus if isinstance(pool.gpus, tuple) else ():
            if number not in {gpu.number for gpu in machine.gpus}:
                known = ", ".join(str(gpu.number) for gpu in machine.gpus) or "none"
                raise SettingsError(f"pool.gpus: there is no GPU {number}; there are: {known}")
            if number in free:
                free.remove(number)
    found = []
    for pool in pools:
        mine = _gpus(pool, free, bool(machine.gpus))
        free = [number for number in free if number not in mine]
        found.append(_groups(pool, mine))
    return found


def shares(
    pools: Sequence[PoolSettings], seats: Sequence[Sequence[tuple[int, ...]]]
) -> list[list[tuple[float | None, bool]]]:
    """For every replica of every pool its share of a GPU's memory, and whether it is alone there.
    Raises `SettingsError` if one GPU is promised more than once over."""
    crowd = Counter(gpu for pool in seats for gpus in pool for gpu in gpus)
    promised: Counter[int] = Counter()
    found: list[list[tuple[float | None, bool]]] = []
    for pool, places in zip(pools, seats, strict=True):
        found.append([])
        for gpus in places:
            most = max((crowd[gpu] for gpu in gpus), default=0)
            even = math.floor(_SHARED / most * 100) / 100 if most > 1 else None
            share = pool.memory if pool.memory is not None else even
            found[-1].append((share if gpus else None, most <= 1))
            for gpu in gpus:
                promised[gpu] += round((share or 0) * 1000)
    for gpu, total in promised.items():
        if total > 1000:
            raise SettingsError(
                f"pool.memory: the replicas on GPU {gpu} would take {total / 1000:.2f} of it"
            )
    return found


def _gpus(pool: PoolSettings, free: list[int], any_here: bool) -> list[int]:
    if isinstance(pool.gpus, tuple):
        return list(pool.gpus)
    if pool.gpus == 0 or pool.engine == "llamacpp" or (pool.gpus is None and not any_here):
        return []
    if pool.gpus is not None:
        if pool.gpus > len(free):
            raise SettingsError(f"pool.gpus: {pool.gpus} are asked for, {len(free)} are left")
        return free[: pool.gpus]
    wanted = len(free) if pool.replicas is None else pool.replicas * pool.width
    whole = min(wanted, len(free)) // pool.width * pool.width
    if whole == 0:
        raise SettingsError(
            f"pool.gpus: a replica of {pool.model} needs {pool.width}, {len(free)} are "
            "left; share them out with gpus, or gpus = 0 for the CPU"
        )
    return free[:whole]


def _groups(pool: PoolSettings, gpus: list[int]) -> list[tuple[int, ...]]:
    if not gpus:
        if pool.tensor_parallel > 1 and pool.engine != "llamacpp" and pool.gpus is None:
            raise SettingsError("pool.tensor_parallel: there is no GPU on this machine")
        return [()] * (pool.replicas or 1)
    width = pool.width
    if len(gpus) % width:
        name = "tensor_parallel" if pool.data_parallel == 1 else "data_parallel"
        raise SettingsError(
            f"pool.{name}: {len(gpus)} GPUs are not shared out in groups of {width}"
        )
    groups = [tuple(gpus[at : at + width]) for at in range(0, len(gpus), width)]
    return [groups[n % len(groups)] for n in range(pool.replicas or len(groups))]
