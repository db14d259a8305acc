"""How many decoding steps a token takes of which session, where the replica speculates. Pure.

A session is expected to go on as it did, and as those before it did from as many turns on: the last
that began as it does (the same agent, by its system prompt). One that is not known yet may be like
any of these, or of the last at all.

Drafts are made of what was said before, so those who say something again take fewer steps than the
first who said it. How many fewer is learned of all kinds of agent; a kind of which only the first
were heard is expected to take as many fewer, else it would be judged by them and not heard again.
"""

from collections import OrderedDict
from collections.abc import Collection
from itertools import chain, islice
from math import exp, log
from typing import TypeVar

import msgspec

_WEIGHT = 0.5  # of a session's newest turn
_DIFFER = 0.25  # by so much its second may take fewer than its first
_GOES_ON = 2.0  # so much its going on as it did weighs, in sessions that went on otherwise
_MOST_TURNS = 8  # of a session that are told apart
_MOST_SESSIONS = 20_000
_MOST_GROUPS = 2_000
_LAST = 6  # sessions that stand for those to come
_ENOUGH = 3
_FEWEST = 2  # of these its own kind, or others
_AGAIN = 0.7  # times the steps, before any was heard again
_AGAIN_WEIGHT = 0.2  # of the newest that was
_LEAST_AGAIN = 0.2
UNKNOWN = 0.4  # steps a token before any was seen: agents repeat much

_Key = TypeVar("_Key")
_Value = TypeVar("_Value")


class _Kind(msgspec.Struct):
    """Sessions that began alike: those that were under way when the first of them was heard, and
    those that came later, each the last few by id."""

    first: OrderedDict[str, float]
    later: OrderedDict[str, float]


class Yields:
    """Of one model. All values are steps a token, the inverse of the acceptance length."""

    def __init__(self) -> None:
        self._sessions: OrderedDict[str, list[float]] = OrderedDict()
        self._kinds: OrderedDict[int, _Kind] = OrderedDict()
        self._all: OrderedDict[str, float] = OrderedDict()
        self._began: OrderedDict[str, bool] = OrderedDict()  # whether its kind was heard by then
        self._again = log(_AGAIN)

    def begin(self, session: str, group: int) -> None:
        """A turn of the session is to be decoded; the first one says when it began."""
        if group and session not in self._sessions and session not in self._began:
            _keep(self._began, session, group in self._kinds, _MOST_SESSIONS)

    def learn(self, session: str, group: int, steps: float) -> None:
        """A turn of the session took so many steps a token."""
        told = self._sessions.pop(session, None) or []
        if told:
            steps = told[-1] + _WEIGHT * (steps - told[-1])
        if len(told) == _MOST_TURNS:
            told.pop()
        told.append(steps)
        _keep(self._sessions, session, told, _MOST_SESSIONS)
        _keep(self._all, session, steps, _LAST)
        if group:
            self._learn_kind(session, group, steps)

    def _learn_kind(self, session: str, group: int, steps: float) -> None:
        kind = self._kinds.pop(group, None) or _Kind(OrderedDict(), OrderedDict())
        later = self._began.pop(session, None)
        if later and kind.first and len(kind.later) < _ENOUGH:
            self._learn_again(steps / _mean(kind.first.values()))
        if session in kind.first or not (later or kind.later):
            _keep(kind.first, session, steps, _LAST)
        else:
            _keep(kind.later, session, steps, _LAST)
        _keep(self._kinds, group, kind, _MOST_GROUPS)

    def _learn_again(self, times: float) -> None:
        seen = log(min(max(times, _LEAST_AGAIN), 1.0))
        self._again += _AGAIN_WEIGHT * (seen - self._again)

    def expect(self, session: str, group: int) -> tuple[float, ...]:
        """What may be expected of its next turn, each value as likely as the others; one value of a
        session that is known."""
        told = self._sessions.get(session)
        if told is not None:
            gone_on = self._gone_on(told, group)
            return (told[-1] * (_GOES_ON + sum(gone_on)) / (_GOES_ON + len(gone_on)),)
        kind = self._kinds.get(group)
        if kind is None:
            return tuple(self._all.values()) or (UNKNOWN,)
        heard = list(kind.later.values())
        again = exp(self._again)
        if len(heard) < _ENOUGH:
            heard += (again * each for each in kind.first.values())
        if len(heard) < _FEWEST:
            # One of its own kind is heard, and one other since that is missing.
            own = kind.first.keys() | kind.later.keys()
            others = (again * self._all[each] for each in reversed(self._all) if each not in own)
            heard += islice(others, _FEWEST - len(heard))
        return tuple(heard)

    def mean(self, session: str, group: int) -> float:
        """The mean of these."""
        return _mean(self.expect(session, group))

    def doubt(self, session: str, group: int) -> float:
        """In parts of what is expected of its next turn, by how much that may be less: the turns of
        a session differ, and others of its kind have not yet told how it goes on. None of one that
        is of no kind, or was not heard."""
        told = self._sessions.get(session)
        if told is None or not group:
            return 0.0
        return _DIFFER / len(told) / (1.0 + len(self._gone_on(told, group)))

    def _gone_on(self, told: list[float], group: int) -> list[float]:
        """How many times the steps that were told by now the last sessions that began so took in
        the end, of which more turns were heard."""
        kind = self._kinds.get(group)
        if kind is None:
            return []
        turns = len(told)
        others = map(self._sessions.get, chain(kind.first, kind.later))
        return [each[-1] / each[turns - 1] for each in others if each and len(each) > turns]

    def once(self, group: int) -> bool:
        """Whether of sessions that begin so only the first were heard: drafts would be made of what
        they said."""
        kind = self._kinds.get(group)
        return kind is not None and not kind.later

    def typical(self) -> float | None:
        """Tokens a step of the last sessions, None before any was seen."""
        return len(self._all) / sum(self._all.values()) if self._all else None


def _mean(values: Collection[float]) -> float:
    return sum(values) / len(values)


def _keep(found: "OrderedDict[_Key, _Value]", key: _Key, value: _Value, most: int) -> None:
    found[key] = value
    if len(found) > most:
        found.popitem(last=False)
