"""How many decoding steps a token takes of which session, where the replica speculates. Pure.

A session is expected to go on as it did. One that is not known yet may be like any of the last
that began as it does (the same agent, by its system prompt), or of the last at all. Of the first
that begin alike more is expected than was seen: drafts are made of what was said before, and a kind
of agent that is judged by its first would not be heard again.
"""

from collections import OrderedDict
from itertools import islice

_WEIGHT = 0.5  # of a session's newest turn
_MOST_SESSIONS = 20_000
_MOST_GROUPS = 2_000
_LAST = 6  # sessions that stand for those to come
_ENOUGH = 3
_FEWER = 0.7  # times the steps, until so many were seen
UNKNOWN = 0.4  # steps a token before any was seen: agents repeat much


class Yields:
    """Of one model. All values are steps a token, the inverse of the acceptance length."""

    def __init__(self) -> None:
        self._sessions: OrderedDict[str, float] = OrderedDict()
        self._groups: OrderedDict[int, OrderedDict[str, float]] = OrderedDict()
        self._all: OrderedDict[str, float] = OrderedDict()

    def learn(self, session: str, group: int, steps: float) -> None:
        """A turn of the session took so many steps a token."""
        before = self._sessions.get(session)
        if before is not None:
            steps = before + _WEIGHT * (steps - before)
        _keep(self._sessions, session, steps, _MOST_SESSIONS)
        _keep(self._all, session, steps, _LAST)
        if group:
            like = self._groups.pop(group, None)
            if like is None:
                like = OrderedDict()
            _keep(like, session, steps, _LAST)
            self._groups[group] = like
            if len(self._groups) > _MOST_GROUPS:
                self._groups.popitem(last=False)

    def expect(self, session: str, group: int) -> tuple[float, ...]:
        """What may be expected of its next turn, each value as likely as the others; one value of a
        session that is known."""
        known = self._sessions.get(session)
        if known is not None:
            return (known,)
        like = self._groups.get(group)
        if like is None:
            return tuple(self._all.values()) or (UNKNOWN,)
        if len(like) >= _ENOUGH:
            return tuple(like.values())
        # A few of its own kind are heard, and others only for those that are missing.
        others = (self._all[each] for each in reversed(self._all) if each not in like)
        heard = (*like.values(), *islice(others, _ENOUGH - len(like)))
        return tuple(_FEWER * each for each in heard)

    def typical(self) -> float | None:
        """Tokens a step of the last sessions, None before any was seen."""
        return len(self._all) / sum(self._all.values()) if self._all else None


def _keep(found: "OrderedDict[str, float]", session: str, steps: float, most: int) -> None:
    found[session] = steps
    if len(found) > most:
        found.popitem(last=False)
