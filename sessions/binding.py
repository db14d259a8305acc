"""What this router remembers of bindings, so that most turns need not ask the store.

An entry is confirmed once the store has answered for it, and only for a while; afterwards, or
while the store is away, it is a belief. Nothing here is written to the store.
"""

from collections import Counter, OrderedDict

import msgspec

from sessile.sessions.record import Binding, SessionKey


class Standing(msgspec.Struct, gc=False):
    """How a session stands, as this router last saw it.

    `confirmed_at` is on the monotonic clock, None for what the store never confirmed.
    `tokens_per_byte` is that of its last prompt, None before the first. `moved`: it was moved while
    it paused, and has sent no turn since.
    """

    binding: Binding
    confirmed_at: float | None
    context_tokens: int | None
    tokens_per_byte: float | None = None
    moved: bool = False


class Standings:
    """The most recently used standings, at most `limit`. Made once a router."""

    def __init__(self, limit: int = 100_000) -> None:
        self._limit = limit
        self._entries: OrderedDict[SessionKey, Standing] = OrderedDict()
        self._bound: Counter[str] = Counter()

    def get(self, key: SessionKey) -> Standing | None:
        """The standing, made the most recent."""
        standing = self._entries.get(key)
        if standing is not None:
            self._entries.move_to_end(key)
        return standing

    def put(self, key: SessionKey, standing: Standing) -> None:
        """Replace what is remembered of `key`."""
        self.drop(key)
        self._entries[key] = standing
        self._bound[standing.binding.replica] += 1
        if len(self._entries) > self._limit:
            self.drop(next(iter(self._entries)))

    def hear(self, key: SessionKey, replica: str, incarnation: str, *, lasts: bool) -> None:
        """Another router has sent a turn of the session to this replica. If that is news here, the
        session is believed to be bound there, until the store confirms it or knows better; of one
        that is not known and, for all that is known, does not last, nothing is remembered."""
        standing = self._entries.get(key)
        if standing is None:
            if lasts:
                self.put(key, Standing(Binding(replica, incarnation, 0), None, None))
            return
        bound = standing.binding
        if (bound.replica, bound.incarnation) != (replica, incarnation):
            moved = Binding(replica, incarnation, bound.epoch)
            ratio = standing.tokens_per_byte
            self.put(key, Standing(moved, None, standing.context_tokens, ratio))

    def drop(self, key: SessionKey) -> None:
        """Forget `key`, if it is known."""
        standing = self._entries.pop(key, None)
        if standing is not None:
            self._bound[standing.binding.replica] -= 1

    def drop_session(self, tenant: str, session: str) -> None:
        """Forget the session under every model."""
        for key in [k for k in self._entries if k.session == session and k.tenant == tenant]:
            self.drop(key)

    def bound_to(self, replica: str) -> int:
        """How many remembered sessions are bound to `replica`."""
        return self._bound[replica]

    def __len__(self) -> int:
        return len(self._entries)
