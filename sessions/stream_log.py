"""What is kept of a turn's events, as a protocol: one sequence a turn, numbered by who makes them.

`memory_log` is the reference, `redis_log` the one that many routers share. The log says who may
write (a lease with a fencing number, which another router takes once it has run out) and that a
sequence ends once; what an event means it does not know. Numbers come from the writer. A reader
finds a hole where numbers are missing: the log never invents an event.

Every method may raise `StoreUnavailable`, and never hangs.
"""

from collections.abc import Callable, Sequence
from typing import Literal, Protocol

import msgspec


class LogLimits(msgspec.Struct, frozen=True, kw_only=True):
    """How long a sequence is kept after its last write, how long a silent router keeps its turns,
    and how much of one turn is kept; over that the oldest events go first."""

    ttl_s: float = 600.0
    lease_s: float = 4.0
    most_events: int = 50_000
    most_bytes: int = 8 * 2**20


class Accept(msgspec.Struct, frozen=True):
    """That a turn was accepted: by whom, all that is needed to run it again elsewhere, and the
    session of which it is the newest turn, if it has named one."""

    owner: str
    record: bytes
    session: str | None = None


class Batch(msgspec.Struct, frozen=True, kw_only=True):
    """The next events of one turn, from number `first`; without events it renews the lease.

    `accept` opens the log of a turn that it does not know, at number `first`. `ended` says that
    the last event is the terminal one.
    """

    tenant: str
    turn: str
    fence: int
    first: int
    events: Sequence[bytes] = ()
    ended: bool = False
    accept: Accept | None = None


class Written(msgspec.Struct, frozen=True):
    """What became of a batch.

    "ok": the log now goes on at `next`; a batch that began before that number changed nothing.
    "gone": the log does not know the turn (any more). "fenced": another router has it. "ended":
    its terminal event has been written. `cancel`: somebody wants the turn to be cancelled.
    `missing`: how many of the turn's events before `next` were never written. `steers`: how many
    were kept for it.
    """

    state: Literal["ok", "gone", "fenced", "ended"]
    next: int = 0
    cancel: bool = False
    missing: int = 0
    steers: int = 0


Steered = Literal["ok", "known", "ended", "gone", "full"]
"""What became of a steer: kept, kept before under its key, or not, since its turn has ended, is
unknown, or has as many as it may."""


class Standing(msgspec.Struct, frozen=True):
    """How a turn stands: its next number, the accept, whether the lease of a running one has run
    out, and whether it was ever taken over."""

    state: Literal["running", "orphaned", "ended"]
    next: int
    fence: int
    cancel: bool
    accept: Accept
    taken: bool = False


class Page(msgspec.Struct, frozen=True):
    """A stretch of a sequence: numbered events, how the turn stood, and its next number."""

    events: list[tuple[int, bytes]]
    state: Literal["running", "orphaned", "ended"]
    next: int


class Taken(msgspec.Struct, frozen=True):
    """A turn taken over: write with this fence, from number `next`."""

    fence: int
    next: int
    cancel: bool
    record: bytes


class StreamLog(Protocol):
    """Keeps sequences of events, all with an expiry."""

    @property
    def limits(self) -> LogLimits:
        """What it was made with."""

    async def append(
        self, batches: Sequence[Batch], sent: Callable[[], None] | None = None
    ) -> list[Written]:
        """Write the next events of many turns, each atomically, in one round trip; in order. `sent`
        is called, where that can be known, when all is on its way, which even the end of this
        process does not stop."""

    async def read(self, tenant: str, turn: str, after: int) -> Page | None:
        """Events behind number `after` (-1: from the start), a page of them; None: no such turn.

        A page without events is the end of what there is now.
        """

    async def look(self, tenant: str, turn: str) -> Standing | None:
        """How the turn stands; None where it is unknown to this tenant."""

    async def take(self, tenant: str, turn: str, owner: str) -> Taken | None:
        """Take a running turn whose lease has run out; None if there is nothing to take."""

    async def release(self, tenant: str, turn: str, fence: int) -> None:
        """Let another router take the turn at once, if it is still ours."""

    async def cancel(self, tenant: str, turn: str) -> bool:
        """Ask the turn's owner to stop; False if it is unknown, or has ended."""

    async def steer(self, tenant: str, turn: str, key: str, said: bytes, most: int) -> Steered:
        """Keep what is said into a running turn, once under its key, for who owns the turn."""

    async def steers(self, tenant: str, turn: str) -> list[tuple[str, bytes]]:
        """What was said into the turn, with its keys, in order."""

    async def newest(self, tenant: str, session: str) -> str | None:
        """The turn of that session that was accepted last; None where none is known (any more)."""

    async def forget(self, tenant: str, turn: str) -> None:
        """Drop all that is kept of the turn."""

    async def orphans(self, most: int) -> list[tuple[str, str]]:
        """Tenant and turn of some whose lease may have run out, the longest ago first."""
