"""What the declared LoRA adapters want of an engine that is started: room for their ranks, and the
modules that they adapt.

Engines set both aside when they start, and refuse an adapter that asks for more while they run.
Pure, but for the adapters' own `adapter_config.json`.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from sessile.engines.flags import Flag, Flags

_ENABLE, _RANK, _MODULES, _BACKEND, _AT_ONCE = (
    "--enable-lora", "--max-lora-rank", "--lora-target-modules", "--lora-backend", "--max-loras",
)  # fmt: skip
_THEIR_OWN = {"--lora-paths", "--lora-modules"}  # adapters of `args`, by which an engine sizes both
_ALL = "all"
_MOST_AT_ONCE = 8  # in one batch, as SGLang has it by itself


class AdapterFacts(msgspec.Struct, frozen=True, kw_only=True):
    """An adapter as its own file describes it; `rank` is None where that cannot be read here."""

    name: str
    base: str
    path: str
    rank: int | None = None
    modules: frozenset[str] = frozenset()
    """The last names of what it adapts; `all` where it says so, or tells them by a pattern."""


def read_adapter(name: str, base: str, path: str) -> AdapterFacts:
    """The facts of a declared adapter; one that the engine fetches tells none."""
    unread = AdapterFacts(name=name, base=base, path=path)
    try:
        told = json.loads(Path(path, "adapter_config.json").read_text())
    except (OSError, ValueError):
        return unread
    told = told if isinstance(told, dict) else {}
    rank, modules = told.get("r"), told.get("target_modules")
    if not isinstance(rank, int) or rank < 1 or not isinstance(modules, str | list) or not modules:
        return unread
    names = {_ALL} if isinstance(modules, str) else {str(m).rpartition(".")[2] for m in modules}
    return msgspec.structs.replace(unread, rank=rank, modules=frozenset(names))


def sglang(
    adapters: Sequence[AdapterFacts], theirs: Mapping[str, str], known: Flags, *, cpu: bool
) -> tuple[list[Flag], list[str]]:
    """SGLang's flags for `adapters`, and what is to be told; `theirs` is what `args` gives. Its own
    kernels of adapters are for GPUs."""
    read, notes = _readable(adapters, theirs, f"{_ENABLE} {_RANK} N {_MODULES} NAME ...")
    if not read:
        return [], notes
    wanted = frozenset().union(*(adapter.modules for adapter in read))
    taken = known.choices.get(_MODULES, wanted)
    for adapter in read:
        if (strange := adapter.modules - taken) and _MODULES not in theirs:
            names = ", ".join(sorted(strange))
            notes.append(f"adapter {adapter.name}: this SGLang adapts no {names}, and refuses it")
    modules = (_ALL,) if _ALL in wanted else tuple(sorted(wanted & taken))
    rank = max(adapter.rank or 0 for adapter in read)
    if not modules:
        return [], notes
    flags: list[Flag] = [(_ENABLE, None), (_RANK, str(rank)), (_MODULES, modules)]
    return flags + ([(_BACKEND, "torch_native")] if cpu else []), notes


def vllm(
    adapters: Sequence[AdapterFacts], theirs: Mapping[str, str], known: Flags
) -> tuple[list[Flag], list[str]]:
    """vLLM's flags, likewise: it adapts every module, takes certain ranks only, and unless told
    otherwise runs one adapter at a time."""
    read, notes = _readable(adapters, theirs, f"{_ENABLE} {_RANK} N")
    if not read:
        return [], notes
    rank = max(adapter.rank or 0 for adapter in read)
    ranks = sorted(int(text) for text in known.choices.get(_RANK, ()) if text.isdecimal())
    most = ranks[-1] if ranks else rank
    if most < rank and _RANK not in theirs:
        large = ", ".join(a.name for a in read if (a.rank or 0) > most)
        notes.append(f"adapter {large}: this vLLM takes no rank above {most}, and refuses it")
    room = next((each for each in ranks if each >= rank), most)
    flags: list[Flag] = [(_ENABLE, None), (_RANK, str(room))]
    if len(read) > 1:
        flags.append((_AT_ONCE, str(min(len(read), _MOST_AT_ONCE))))
    return flags, notes


def _readable(
    adapters: Sequence[AdapterFacts], theirs: Mapping[str, str], remedy: str
) -> tuple[list[AdapterFacts], list[str]]:
    """Those that tell what they want, and a note on each other. None of them where `args` names
    adapters itself: an engine sizes itself by these, and ours would only narrow that."""
    if _THEIR_OWN & theirs.keys():
        return [], []
    notes = [
        f"adapter {a.name}: no adapter_config.json can be read in {a.path}, so the engine gets no "
        f"room for it: give {remedy} in pool.args"
        for a in adapters
        if a.rank is None and _RANK not in theirs
    ]
    return [adapter for adapter in adapters if adapter.rank is not None], notes
