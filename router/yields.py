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
_BETTER = 0.95  # times the steps, at most, is better when it comes again
UNKNOWN = 0.4  # steps a token before any was seen: agents repeat much

_Key = TypeVar("_Key")
_Value = TypeVar("_Value")


class _Session(msgspec.Struct):
    """`group` is how its first turn began, `later` whether its kind was heard by then; `told` are
    its steps a token after each turn, the newest weighing most, `expects` those of the next."""

    group: int
    later: bool = False
    told: list[float] = []
    expects: float = UNKNOWN


class _Kind(msgspec.Struct):
    """Sessions that began alike: those that were under way when the first of them was heard, and
    those that came later, each the last few by id."""

    first: OrderedDict[str, float]
    later: OrderedDict[str, float]


class Yields:
    """Of one model. All values are steps a token, the inverse of the acceptance length."""

    def __init__(self) -> None:
        self._sessions: OrderedDict[str, _Session] = OrderedDict()
        self._kinds: OrderedDict[int, _Kind] = OrderedDict()
        self._all: OrderedDict[str, float] = OrderedDict()
        self._again = log(_AGAIN)

    def begin(self, session: str, group: int) -> None:
        """A turn of the session is to be decoded; the first one says when and how it began."""
        if session not in self._sessions:
            begun = _Session(group, later=group in self._kinds)
            _keep(self._sessions, session, begun, _MOST_SESSIONS)

    def learn(self, session: str, group: int, steps: float) -> None:
        """A turn of the session took so many steps a token."""
        known = self._sessions.pop(session, None) or _Session(group)
        _keep(self._sessions, session, known, _MOST_SESSIONS)
        first = not known.told
        if not first:
            steps = known.told[-1] + _WEIGHT * (steps - known.told[-1])
        if len(known.told) == _MOST_TURNS:
            known.told.pop()
        known.told.append(steps)
        _keep(self._all, session, steps, _LAST)
        if known.group:
            self._learn_kind(session, known, first)
        gone_on = self._gone_on(known)
        known.expects = steps * (_GOES_ON + sum(gone_on)) / (_GOES_ON + len(gone_on))

    def _learn_kind(self, session: str, known: _Session, first: bool) -> None:
        kind = self._kinds.pop(known.group, None) or _Kind(OrderedDict(), OrderedDict())
        steps = known.told[-1]
        if first and known.later and kind.first and len(kind.later) < _ENOUGH:
            self._learn_again(steps, kind)
        if session in kind.first or not (known.later or kind.later):
            _keep(kind.first, session, steps, _LAST)
        else:
            _keep(kind.later, session, steps, _LAST)
        _keep(self._kinds, known.group, kind, _MOST_GROUPS)

    def _learn_again(self, steps: float, kind: _Kind) -> None:
        """The first turn of one that came later took so many, as that of the first is told."""
        firsts = (self._sessions.get(each) for each in kind.first)
        of_first = [each.told[0] for each in firsts if each is not None and each.told]
        if not of_first:  # forgotten, or begun anew
            return
        times = steps / _mean(of_first)
        seen = log(min(max(times, _LEAST_AGAIN), 1.0 / _LEAST_AGAIN))
        self._again += _AGAIN_WEIGHT * (seen - self._again)

    def expect(self, session: str, group: int) -> tuple[float, ...]:
        """What may be expected of its next turn, each value as likely as the others; one value of a
        session that is known. `group` is for one that has not begun."""
        known = self._sessions.get(session) or _Session(group)
        if known.told:
            return (known.expects,)
        kind = self._kinds.get(known.group)
        if kind is None:
            return tuple(self._all.values()) or (UNKNOWN,)
        heard = list(kind.later.values())
        again = min(exp(self._again), 1.0)
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

    def doubt(self, session: str) -> float:
        """In parts of what is expected of its next turn, by how much that may be less: the turns of
        a session differ, and others of its kind have not yet told how it goes on. None of one that
        is of no kind, or was not heard."""
        known = self._sessions.get(session)
        if known is None or not known.told or not known.group:
            return 0.0
        return _DIFFER / len(known.told) / (1.0 + len(self._gone_on(known)))

    def _gone_on(self, known: _Session) -> list[float]:
        """How many times the steps that were told by now the last sessions that began so took in
        the end, of which more turns were heard."""
        kind = self._kinds.get(known.group)
        if kind is None:
            return []
        turns = len(known.told)
        others = (self._sessions.get(each) for each in chain(kind.first, kind.later))
        tolds = (each.told for each in others if each is not None)
        return [told[-1] / told[turns - 1] for told in tolds if len(told) > turns]

    def young(self, group: int) -> bool:
        """Whether of sessions that begin so hardly any but the first was heard, while those of
        other kinds took fewer steps when they came again."""
        kind = self._kinds.get(group)
        return kind is not None and len(kind.later) < _FEWEST and exp(self._again) < _BETTER

    def typical(self) -> float | None:
        """Tokens a step of the last sessions, None before any was seen."""
        return len(self._all) / sum(self._all.values()) if self._all else None


def _mean(values: Collection[float]) -> float:
    return sum(values) / len(values)


def _keep(found: "OrderedDict[_Key, _Value]", key: _Key, value: _Value, most: int) -> None:
    found[key] = value
    if len(found) > most:
        found.popitem(last=False)
