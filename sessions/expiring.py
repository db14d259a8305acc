"""A mapping whose entries end by themselves: at their time, or as the oldest of too many."""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Expiring(Generic[K, V]):
    """Made by the memory store, one for each kind of fact; `most` entries at once, of which a read
    renews none."""

    def __init__(self, ttl_s: float, clock: Callable[[], float], most: int) -> None:
        self._ttl_s = ttl_s
        self._clock = clock
        self._most = most
        self._entries: OrderedDict[K, tuple[float, V]] = OrderedDict()

    def get(self, key: K) -> V | None:
        """What is kept under the key and has not ended."""
        entry = self._entries.get(key)
        if entry is None:
            return None
        if entry[0] <= self._clock():
            del self._entries[key]
            return None
        return entry[1]

    def put(self, key: K, value: V, ttl_s: float | None = None) -> None:
        """Keep it anew, from now on."""
        self._entries[key] = (self._clock() + (ttl_s or self._ttl_s), value)
        self._entries.move_to_end(key)
        if len(self._entries) > self._most:
            self._entries.popitem(last=False)

    def drop(self, key: K) -> None:
        """End it now, if it is there."""
        self._entries.pop(key, None)

    def items(self) -> list[tuple[K, V]]:
        """All that has not ended, what was put last at the end."""
        live = ((key, self.get(key)) for key in list(self._entries))
        return [(key, value) for key, value in live if value is not None]

    def newest(self) -> list[V]:
        """The same without keys, what was put last first."""
        return [value for _, value in reversed(self.items())]
