"""The queue before the replicas: who is next when their KV memory is full. Pure.

Within a priority class the tenant that has been served least (by its weight) comes first, waiting
counted as if less had been served, so that nobody starves: of one tenant's turns the one that has
waited longest; of those that came together, the one whose program has been served least. Strict
least attained service was tried in simulation, and lost hit rate and tail: sessions that had begun
recomputed more. Service is counted in seconds of engine time.
"""

from collections import OrderedDict
from collections.abc import Iterator

import msgspec

from sessile.errors import Overloaded
from sessile.router.policy import Ask

_AGEING = 2.0  # a second of waiting makes up for so many seconds of service
_MOST_PROGRAMS = 100_000


class Waiting(msgspec.Struct):
    """One turn in the queue, since `at`."""

    ask: Ask
    at: float


class Queue:
    """The turns that wait. Bounded; one a router."""

    def __init__(self, most: int, weights: dict[str, float] | None = None) -> None:
        self._most = most
        self._weights = weights or {}
        self._waiting: dict[str, Waiting] = {}
        self._programs: OrderedDict[str, float] = OrderedDict()
        self._tenants: dict[str, float] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def push(self, ask: Ask, now: float, retry_after_s: float) -> None:
        """Let the turn wait. Raises `Overloaded` when the queue is full."""
        if len(self._waiting) >= self._most:
            raise Overloaded(
                f"the replicas' KV memory is full and {len(self._waiting)} turns wait for it "
                "already; come back later",
                retry_after_s=retry_after_s,
            )
        if ask.tenant not in self._tenants or not any(
            w.ask.tenant == ask.tenant for w in self._waiting.values()
        ):
            # Idleness earns nothing: who comes back starts level with those who wait.
            level = min((self._served(w.ask.tenant) for w in self._waiting.values()), default=0.0)
            self._tenants[ask.tenant] = max(self._tenants.get(ask.tenant, 0.0), level)
        self._waiting[ask.turn] = Waiting(ask, now)

    def remove(self, turn: str) -> Waiting | None:
        """Take a turn out: it is sent, or its client has gone."""
        return self._waiting.pop(turn, None)

    def ordered(self, now: float) -> list[Waiting]:
        """All that wait, the next one first."""
        return sorted(self._waiting.values(), key=lambda w: self._key(w, now))

    def overdue(self, now: float) -> Iterator[Waiting]:
        """Those whose deadline has passed."""
        for waiting in list(self._waiting.values()):
            if waiting.ask.deadline is not None and waiting.ask.deadline <= now:
                yield waiting

    def serve(self, tenant: str, program: str, seconds: float) -> None:
        """Count what a turn has cost its program and its tenant."""
        self._programs[program] = self._programs.pop(program, 0.0) + seconds
        if len(self._programs) > _MOST_PROGRAMS:
            self._programs.popitem(last=False)
        self._tenants[tenant] = self._served(tenant) + seconds / self._weights.get(tenant, 1.0)

    def _served(self, tenant: str) -> float:
        return self._tenants.get(tenant, 0.0)

    def _key(self, waiting: Waiting, now: float) -> tuple[int, float, float]:
        ask = waiting.ask
        aged = _AGEING * (now - waiting.at)
        return (
            ask.priority,
            self._served(ask.tenant) - aged,
            self._programs.get(ask.program, 0.0) - aged,
        )
