"""Whether the kind of replica that seems worse is worth another look. Pure.

What is accepted changes, a replica may have been slow for another reason, and whoever believes that
a kind is slow does not hear of it again. So it is tried, as often as a small part of all decoding
pays for. Whatever it costs, it is where what is believed cannot be, and speculation by kinds of
agent that are hardly known: on a shared device by all of a moment, since one alone would slow all
others down and tell of himself only.
"""

from collections.abc import Sequence

from sessile.router.clocks import Clocks, context_of
from sessile.router.outlook import Outlook
from sessile.router.policy import Ask
from sessile.router.steps import Steps
from sessile.router.yields import Yields

_TRIAL = 0.005
"""Of all decoding so much may be given away for trying the kind that seems worse."""
_OLD_S = 20.0  # what was seen less long ago need not be tried again
_VERY_OLD_S = 600.0  # what was seen so long ago may be of a bad moment, however far off it is
_FAR = 1.5  # times slower is so far off that it is not tried
_YOUNG = 2.0  # times slower is so far off for a kind of agent that is hardly known
_CANNOT = 2.0  # times the dearest is what no step is
_DEAREST = 4.0  # is a step that verifies drafts at most
_DEAREST_GROWS = 0.06  # a batch has more to verify: 1.6 times a step alone, 3.2 times one of 16


class Looks:
    """Of one model, by what is learned of it. `counted` is whether an engine tells of its steps, so
    that they are not guessed at by their speed."""

    def __init__(self, steps: Steps, yields: Yields, clocks: Clocks) -> None:
        self.counted = False
        self._steps, self._yields, self._clocks = steps, yields, clocks
        self._spare_s = 0.0
        self._surprised: bool | None = None
        self._lookers = {False: 0.0, True: 0.0}  # how many more of a moment try what is doubted
        self._doubt_s = {False: _OLD_S, True: _OLD_S}  # until what cannot be is looked at again
        self._told_at = {False: 0.0, True: 0.0}  # or when a trial began, which is to tell

    # -- whether to look

    def allow(
        self, ask: Ask, kind: bool, outlooks: Sequence[Outlook], extra_s: float, now: float
    ) -> bool:
        """Whether that kind may be tried, by a turn that takes so much longer there."""
        alone = self._alone(kind, outlooks)
        if alone and kind and self._young(ask):
            return True
        since_s = now - self._told_at[kind]
        if self._doubted(kind):
            return (alone and self._lookers[kind] >= 1.0) or since_s > self._doubt_s[kind]
        if self._steps.shared:  # all who run beside it pay for it
            steps = self._yields.mean(ask.session, ask.opening) if kind else 1.0
            tried_s = ask.output_tokens * steps * self._steps.step_s(kind, 1.0, context_of(ask))
            extra_s += self._steps.waits * max(0.0, self._clocks.crowd - 1.0) * tried_s
        elif self._surprised is kind:
            return True
        return since_s > _OLD_S and extra_s <= self._spare_s

    def hopeless(self, ask: Ask, kind: bool, now: float) -> bool:
        """Whether so much is accepted that not speculating cannot be faster, whatever it costs; or
        is far from it, where its cost is known: that hardly changes, unlike what is accepted."""
        if kind or not self._steps.seen(True):
            return False
        steps, running = self._yields.mean(ask.session, ask.opening), self._clocks.crowd
        if not self._steps.known:
            return steps * _dearest(running) < 1.0
        running = max(running, 1.0)
        if not self._steps.sure(False, running) or self._doubted(False):
            return False
        if now - self._told_at[False] > _VERY_OLD_S:
            return False
        return self._times(ask, steps) * _FAR < 1.0

    def _alone(self, kind: bool, outlooks: Sequence[Outlook]) -> bool:
        """Whether who tries that kind would slow nobody down, since none runs at the other kind of
        the same device: then all who come in this moment can try it."""
        others = (o for o in outlooks if o.speculates is not kind)
        return self._steps.shared and not any(o.in_flight for o in others)

    def _young(self, ask: Ask) -> bool:
        """Whether little was heard of its kind of agent, and what was does not tell that drafts are
        far from being worth it. To hear more is paid for by those of its kind that come later."""
        if not self._yields.young(ask.opening):
            return False
        return self._times(ask, self._yields.mean(ask.session, ask.opening)) < _YOUNG

    def _times(self, ask: Ask, steps: float) -> float:
        """How many times as long decoding takes with drafts, at so many steps a token."""
        running, context = max(self._clocks.crowd, 1.0), context_of(ask)
        speculated_s = steps * self._steps.step_s(True, running, context)
        return speculated_s / self._steps.step_s(False, running, context)

    def _doubted(self, kind: bool) -> bool:
        """Whether what is believed of its step cannot be: to verify drafts is dearer than not to,
        and not by more than so much. Something else slowed it down as it was last seen."""
        if not self.counted:
            return False
        running, context = max(self._clocks.crowd, 1.0), self._clocks.context
        plain_s = self._steps.step_s(False, running, context)
        speculated_s = self._steps.step_s(True, running, context)
        if kind:
            return speculated_s > _CANNOT * _dearest(running) * plain_s
        return plain_s > speculated_s

    # -- what becomes of it

    def begin(self, ask: Ask, kind: bool, outlooks: Sequence[Outlook], now: float) -> None:
        """A trial of that kind was booked: what it may cost is spent."""
        alone, doubted = self._alone(kind, outlooks), self._doubted(kind)
        if alone and doubted and self._lookers[kind] >= 1.0:
            self._lookers[kind] -= 1.0
            return
        if alone and kind and self._young(ask):
            return
        if self._steps.known and doubted:
            self._doubt_s[kind] *= 2.0
        self._told_at[kind] = now
        self._spare_s = 0.0
        self._surprised = None
        if alone and doubted:
            self._lookers[kind] = self._clocks.crowd - 1.0

    def placed(self, kind: bool) -> None:
        """A new session goes to a replica of that kind anyway."""
        if kind is self._surprised:
            self._surprised = None

    def earn(self, decode_s: float) -> None:
        """So much was decoded."""
        self._spare_s += _TRIAL * decode_s

    def heard(self, kind: bool, *, surprising: bool, now: float) -> None:
        """A turn there was learned of. It is `surprising` if speculating was the faster for a
        session of which it was not expected."""
        self._told_at[kind] = now
        self._lookers[kind] = 0.0
        if surprising:
            self._surprised = kind
        if self._steps.known and not self._doubted(kind):
            self._doubt_s[kind] = _OLD_S


def _dearest(running: float) -> float:
    """Times a step without drafts that one with them takes at most."""
    return _DEAREST * (1.0 + _DEAREST_GROWS * running)
