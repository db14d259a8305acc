"""LoRA adapters: which there are, where each is loaded, what a load takes, and which adapter makes
way for another. Pure: `sessile.adapters` speaks to the engines.

An adapter is a model of its own to whoever asks for it, so sessions, bindings and news know it by
its name. A turn of it may go wherever it is loaded, and wherever its base is served and it could be
loaded, at the price of the load.
"""

from collections.abc import Iterable, Iterator

import msgspec

_LOAD_S = 1.0  # before any load was seen
_MEMORY = 0.8  # what is believed of a load still weighs so much when the next one comes


class Adapter(msgspec.Struct, frozen=True, kw_only=True):
    """An adapter of the model `base`. `path` is where an engine finds it; None: nobody has said,
    it was loaded by others, and is served only where it is."""

    name: str
    base: str
    path: str | None = None


class Shelf:
    """The adapters that one replica has loaded, the least recently used first. Made with its
    outlook; `running` are turns of this router, `coming` what is being loaded.

    `moves` counts what was put and dropped here: what an engine was asked before the last of them
    is old.

    Invariant: `loaded` and `coming` have no adapter in common.
    """

    __slots__ = ("coming", "fixed", "limit", "loaded", "moves", "running")

    def __init__(self) -> None:
        self.limit: int | None = None
        self.loaded: dict[str, None] = {}
        self.coming: set[str] = set()
        self.fixed: frozenset[str] = frozenset()  # could not be loaded again, so they stay
        self.running: dict[str, int] = {}
        self.moves = 0

    @property
    def has_room(self) -> bool:
        """Whether one more can be loaded beside the others."""
        return self.limit is None or len(self.loaded) + len(self.coming) < self.limit

    def victim(self) -> str | None:
        """The least recently used of those that no turn runs on; None while there is none."""
        for name in self.loaded:
            if name not in self.running and name not in self.fixed:
                return name
        return None

    def begin(self, name: str) -> None:
        """A turn of the adapter is to run here: it stays until `end`."""
        self.running[name] = self.running.get(name, 0) + 1
        self.touch(name)

    def end(self, name: str) -> None:
        """A turn of the adapter is over."""
        left = self.running.pop(name, 1) - 1
        if left:
            self.running[name] = left
        self.touch(name)

    def touch(self, name: str) -> None:
        """The adapter is used, by whichever router."""
        if name in self.loaded:
            del self.loaded[name]
            self.loaded[name] = None

    def put(self, name: str) -> None:
        """It is loaded now."""
        self.moves += 1
        self.coming.discard(name)
        self.loaded[name] = None

    def drop(self, name: str) -> None:
        """It is not loaded any more."""
        self.moves += 1
        self.loaded.pop(name, None)

    def told(self, names: Iterable[str]) -> None:
        """What the engine says that it has loaded; the order of use is kept."""
        named = dict.fromkeys(name for name in names if name not in self.coming)
        self.loaded = {n: None for n in self.loaded if n in named} | named

    def clear(self) -> None:
        """The replica started anew."""
        self.loaded.clear()

    def wait_s(self, name: str, load_s: float, slot_s: float) -> float:
        """How long a turn of the adapter waits here for it, where a load takes `load_s` and a
        running turn ends in `slot_s`. One that has to make way will be loaded again: that is
        counted too."""
        if name in self.loaded:
            return 0.0
        if name in self.coming or self.has_room:
            return load_s
        return 2.0 * load_s + (0.0 if self.victim() is not None else slot_s)


class Adapters:
    """All adapters that one router knows, whatever told it of them. Made with the pool.

    `most` is how many a replica is given that does not say how many it can hold.
    """

    def __init__(self, most: int | None = None) -> None:
        self.most = most
        self._known: dict[str, Adapter] = {}
        self._refused: dict[tuple[str, str], tuple[str, str]] = {}
        self._load_s: dict[str, float] = {}

    def __iter__(self) -> Iterator[Adapter]:
        return iter(list(self._known.values()))

    def __contains__(self, name: str) -> bool:
        return name in self._known

    def get(self, name: str) -> Adapter | None:
        """The adapter of that name, if it is known."""
        return self._known.get(name)

    def declare(self, adapter: Adapter) -> None:
        """There is such an adapter; what was known under its name before is not any more."""
        self.forget(adapter.name)
        self._known[adapter.name] = adapter

    def found(self, adapter: Adapter) -> None:
        """A replica has it loaded. Unless it was declared, nobody has said that another may find it
        where that one did."""
        if adapter.name not in self._known:
            self._known[adapter.name] = Adapter(name=adapter.name, base=adapter.base)

    def forget(self, name: str) -> None:
        """There is no such adapter any more, nor a reason not to load the next one of its name."""
        self._known.pop(name, None)
        for key in [key for key in self._refused if key[0] == name]:
            del self._refused[key]

    def refuse(self, name: str, replica: str, incarnation: str, why: str) -> None:
        """The replica would not load it, in its own words: it is not asked again until it is
        started anew, or the adapter declared anew."""
        self._refused[name, replica] = incarnation, why

    def refusal(self, name: str, replica: str, incarnation: str) -> str | None:
        """Why the replica would not load it; None: it may be asked."""
        when, why = self._refused.get((name, replica), ("", None))
        return why if when == incarnation else None

    def load_s(self, base: str) -> float:
        """How long a load of an adapter of that model is believed to take."""
        return self._load_s.get(base, _LOAD_S)

    def learn(self, base: str, seconds: float) -> None:
        """A load took so long."""
        before = self._load_s.get(base)
        new = seconds if before is None else _MEMORY * before + (1 - _MEMORY) * seconds
        self._load_s[base] = new
