"""What a turn would cost at a replica, in seconds, from rates that are learned there. Pure.

    price = wait for work ahead + prefill of what is not cached + what that costs the others

The prefill of `n` tokens behind `c` others takes `base + slope * work(c, n)`, where `work` is
tokens that count for more the longer the attention before them is. Base and slope are fitted to
every first token that comes back, newer ones weighing more, from a prior of a few made-up ones.
"""

from math import sqrt
from typing import NamedTuple

import msgspec

LONG_TOKENS = 12_000.0
"""A token behind so many others costs twice as much as the first: 37, 40 and 46 us a token were
measured for 2k, 4k and 8k prompts of an 8B model on an H100."""

_MEMORY = 0.97  # what an observation still weighs when the next one comes
_PRIOR = ((0.05, 50.0), (0.3, 500.0), (0.8, 1500.0))  # seconds for so much work: 2,000 tokens/s
_PRIOR_WEIGHT = 0.3
_LEAST_SHARE = 0.1
"""Of the time of first tokens so much is their work's. NOTE: few turns that were late by chance can
make all work look free, and then whichever replica has the least base is sent everything."""
_LEAN_TURNS = 200  # when a replica's own turns weigh as much as everybody's
_MOST_OWN = 1_000
_TPOT_S = 0.03
_TRAFFIC_S = 60.0
_COMING = 4.0
"""So many suffer from a prefill in any case, since what it stores drives out what others hold.
NOTE: measured in simulation; without it 1 to 2 points of hit rate are lost, with 20 times grow."""
_TPOT_MEMORY = 0.95


def work(cached: float, uncached: float) -> float:
    """Tokens of prefill, weighed by how much stands before them."""
    return uncached * (1.0 + (cached + 0.5 * uncached) / LONG_TOKENS)


class Rates(msgspec.Struct):
    """The learned rates of one replica, or of all that serve a model. `observe_*` and `lean_on`
    change them, nothing else does.

    `base_s` and `slope_s` are what is believed, `own_*` what the turns seen here tell, by least
    squares over (work, seconds): `x` and `y` are means by a weight of `n`, which a turn decays by
    `_MEMORY`, and `xx` and `xy` the sums of squares about them, by a weight of `m`. A turn decays
    these only as far as it tells of the slope itself: agents whose prompts are all cached would
    else leave nothing of it but the noise of their first tokens.
    """

    base_s: float = 0.0
    slope_s: float = 0.0
    tpot_s: float = _TPOT_S
    own_base_s: float = 0.0
    own_slope_s: float = 0.0
    turns: int = 0
    n: float = 0.0
    x: float = 0.0
    y: float = 0.0
    m: float = 0.0
    xx: float = 0.0
    xy: float = 0.0

    @staticmethod
    def prior(prefill_tokens_per_s: float | None = None, tpot_s: float = _TPOT_S) -> "Rates":
        """The rates before anything was seen there; a known rate takes the prior's place."""
        rates = Rates(tpot_s=tpot_s)
        for seconds, tokens in _PRIOR:
            if prefill_tokens_per_s:
                seconds = 0.01 + work(0, tokens) / prefill_tokens_per_s
            rates._add(work(0, tokens), seconds, _PRIOR_WEIGHT)
        rates._solve()
        return rates

    def prefill_s(self, amount: float) -> float:
        """Seconds until the first token of so much work, with nothing ahead of it."""
        return self.base_s + self.slope_s * amount

    def observe_first_token(self, amount: float, seconds: float) -> None:
        """A first token came `seconds` after `amount` of work, its own and what was ahead, was
        begun. One that took far longer than foreseen waited for something else: it counts less."""
        foreseen = self.prefill_s(amount)
        if self.turns > 8:
            seconds = min(seconds, 4.0 * foreseen + 0.05)
        self.turns += 1
        self._add(amount, seconds, 1.0, _MEMORY)
        self._solve()

    def lean_on(self, others: "Rates") -> None:
        """Believe of this replica what is seen of all that serve the model, until it has been seen
        often enough itself: differences that are only noise would move sessions about."""
        if not others.turns:
            return
        own = min(self.turns, _MOST_OWN)
        share = own / (own + _LEAN_TURNS)
        self.base_s = share * self.own_base_s + (1 - share) * others.own_base_s
        self.slope_s = share * self.own_slope_s + (1 - share) * others.own_slope_s
        if not own:
            self.tpot_s = others.tpot_s

    def observe_decode(self, tpot_s: float) -> None:
        """A turn generated its tokens at this pace."""
        self.tpot_s = _TPOT_MEMORY * self.tpot_s + (1 - _TPOT_MEMORY) * tpot_s

    def _add(self, amount: float, seconds: float, weight: float, memory: float = 1.0) -> None:
        # NOTE: weighed by what was foreseen, so that the relative error is fitted: a turn of 50
        # tokens matters as much as one of 5,000.
        weight /= (0.02 + seconds) ** 2
        before = memory * self.n
        self.n = before + weight
        off, late = amount - self.x, seconds - self.y
        self.x += weight / self.n * off
        self.y += weight / self.n * late
        gain = weight * before / self.n
        tells = min(1.0, off * off * self.m / self.xx) if self.xx else 1.0
        fades = memory**tells
        self.m = fades * self.m + tells * weight
        self.xx = fades * self.xx + gain * off * off
        self.xy = fades * self.xy + gain * off * late

    def _solve(self) -> None:
        slope = self.xy / self.xx if self.xx else self.own_slope_s
        # A slope or a base below nothing is noise: the line goes through what is.
        most = self.y / max(self.x, 1e-9)
        usual = max(self.x, sqrt(self.xx / self.m) if self.m else 0.0, 1e-9)
        self.own_slope_s = self.slope_s = min(max(slope, _LEAST_SHARE * self.y / usual), most)
        self.own_base_s = self.base_s = max(0.0, self.y - self.slope_s * self.x)


class Traffic(msgspec.Struct):
    """What comes to one replica: turns and their work, those of the last minute weighing most.
    Time must not go back."""

    turns: float = 0.0
    work: float = 0.0
    at: float = 0.0

    def add(self, now: float, amount: float) -> None:
        """A turn of so much work comes."""
        fades = _TRAFFIC_S / (_TRAFFIC_S + now - self.at)
        self.turns, self.work = self.turns * fades + 1.0, self.work * fades + amount
        self.at = now

    def coming(self, now: float, slope_s: float, busy_s: float) -> float:
        """How many turns, not known of yet, will wait for one that comes now and is done in
        `busy_s`: those that come until the replica has nothing more to do. In a queue of load rho
        that takes 1 / (1 - rho) times as long as the work that is there."""
        fades = 1.0 / (_TRAFFIC_S + now - self.at)
        idle = 1.0 - self.work * slope_s * fades
        return _COMING + self.turns * fades * busy_s / (idle if idle > 0.1 else 0.1)


class Price(NamedTuple):
    """What a turn would cost at one replica; all but `cached_tokens` in seconds."""

    wait_s: float
    prefill_s: float
    harm_s: float
    cached_tokens: int

    @property
    def ttft_s(self) -> float:
        """When its first token is foreseen."""
        return self.wait_s + self.prefill_s

    @property
    def total_s(self) -> float:
        """What it costs this turn and the others."""
        return self.wait_s + self.prefill_s + self.harm_s
