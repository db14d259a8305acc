"""Where a turn finishes soonest, of the replicas whose memory fits it. Pure.

What each would cost is `price`'s and `outlook`'s to say; here they are compared, with what is
learned of all replicas together. Nothing is booked here.
"""

from collections import defaultdict
from collections.abc import Collection, Sequence
from math import inf
from typing import Literal

from sessile.router.decide import Decision, nobody
from sessile.router.holdings import Index
from sessile.router.outlook import Outlook, totals
from sessile.router.pace import Pace
from sessile.router.policy import Ask, rendezvous
from sessile.router.price import Price, Rates, work
from sessile.router.returns import Returns

_ADDED_TOKENS = 1000.0  # before any was seen: tool output, and what the user says
_ADDED_WEIGHT = 0.02
_AS_GOOD = 1.02  # prices that differ by less are as good
_HORIZON = 8.0  # turns of a session that are foreseen, unless it says that this is its last
_LEAST_MARGIN_S = 0.05  # nobody notices less


class Chooser:
    """Chooses for one router. Made by its scheduler, which tells what became of the turns.

    `live_share` is the share of a replica's KV memory that live sessions may need, `margin` how
    much of what a session's context costs to compute anew must be saved by a move.
    """

    def __init__(self, returns: Returns, *, live_share: float, margin: float) -> None:
        self.returns = returns
        self._live_share = live_share
        self._margin = margin
        self.rates: defaultdict[str, Rates] = defaultdict(Rates.prior)  # of a model, anywhere
        self._added_tokens = _ADDED_TOKENS  # that a turn of a bound session computes, of late
        self._leaned: dict[str, tuple[int, int]] = {}  # by model: turns seen, how many replicas
        self.paces: dict[str, Pace] = {}  # of models that only some replicas speculate for
        self._index = Index()

    def observe_added(self, tokens: int) -> None:
        """A turn of a bound session had so much to compute."""
        self._added_tokens += _ADDED_WEIGHT * (tokens - self._added_tokens)

    def decide(
        self, ask: Ask, open_to: Sequence[Outlook], now: float, failed: Collection[str] = (),
        *, force: bool = False,
    ) -> Decision | None:  # fmt: skip
        """The cases, in order:

        1. nobody is left: `NoReplica`
        2. bound, the replica is there, and nobody can be so much cheaper, or it was chosen a
           moment ago: stay
        3. the cheapest of those whose memory fits it; the bound one unless that saves the margin
        4. its memory fits nowhere: None, or with `force` or `failed` the cheapest all the same

        Books nothing.
        """
        force = force or bool(failed)
        if failed:
            open_to = [outlook for outlook in open_to if outlook.id not in failed]
        if not open_to:
            raise nobody(failed)
        home = home_of(ask, open_to)
        margin_s = 0.0
        home_price = None
        if home is not None and (force or self._fits(ask, home)):
            home.rates.lean_on(self.rates[ask.model])
            home_price = home.price(ask, now)
            if ask.claimed is not None:
                return _decision(ask, home, ask.claimed, home_price)
            margin_s = self._margin_s(ask, home)
        new = ask.bound is None or ask.claimed is not None
        turns = 0.0 if ask.last else _HORIZON * self.returns.share
        later = turns * self._added_tokens if new else 0.0
        pace = self.pace(ask, open_to)
        decode_s: dict[str, float] = {}  # what is to be chosen by, where the replicas differ in it
        spare_s = home_decode_s = 0.0
        if pace is not None:
            tokens = later + (ask.prompt_tokens if new else self._added_tokens)
            decode_s = pace.weigh(ask, open_to, turns, tokens)
            if home is not None:
                home_decode_s = decode_s[home.id]
                spare_s = home_decode_s - min(decode_s.values())
                margin_s += pace.worth(ask, home) * home_decode_s
        if home_price is not None and home_price.wait_s + home_price.harm_s + spare_s <= margin_s:
            assert home is not None
            return _decision(ask, home, "bound", home_price)
        self._lean(ask.model, open_to)
        # A session that is placed now will burden its replica again at each of its turns.
        others = [outlook for outlook in open_to if outlook is not home] if home else open_to
        if not others and home_price is not None:
            assert home is not None
            return _decision(ask, home, "bound", home_price)
        fill = inf if force else self._fill()
        plain_s = totals(self._index, others, ask, now, fill=fill, later_tokens=later)
        prices_s = plain_s
        if pace is not None:
            prices_s = [each_s + decode_s[o.id] for o, each_s in zip(others, plain_s, strict=True)]
        best_s = min(prices_s, default=inf)
        stays_s = inf if home_price is None else home_price.total_s - margin_s
        if home_price is not None and stays_s + home_decode_s <= best_s:
            assert home is not None
            return _decision(ask, home, "bound", home_price)
        if best_s == inf:
            return None
        best = self._best(ask, others, prices_s, best_s)
        reason = ""
        if pace is not None and not failed:
            tried = pace.trial(ask, others, prices_s, turns, now) if new else None
            if tried is not None:
                best, reason = tried, "trial"
            elif plain_s[others.index(best)] > min(*plain_s, stays_s) * _AS_GOOD:
                reason = "speculation"
        price = best.price(ask, now)
        reason = reason or self._reason(ask, best, price, home, open_to, failed)
        return _decision(ask, best, reason, price)

    def pace(self, ask: Ask, open_to: Sequence[Outlook]) -> Pace | None:
        """How the replicas of the model decode; None where all speculate, or none does: then
        nothing is to be chosen."""
        first = open_to[0].speculates
        for outlook in open_to:
            if outlook.speculates is not first:
                model = ask.base or ask.model
                return self.paces.get(model) or self.paces.setdefault(model, Pace())
        return None

    def tried(self, ask: Ask, chosen: Outlook, open_to: Sequence[Outlook], now: float) -> None:
        """A trial was decided and will be: what it costs is not to be spent twice."""
        self.paces[ask.base or ask.model].tried(ask, chosen.speculates, open_to, now)

    def _lean(self, model: str, open_to: Sequence[Outlook]) -> None:
        """What is believed of each replica leans on what is seen of all. NOTE: here, and not only
        where a replica is seen itself: one whose turns do not end would be believed for ever what
        was believed of all at some bad moment, and be sent everything meanwhile."""
        seen = self.rates[model]
        told = (seen.turns, len(open_to))
        if told != self._leaned.get(model):
            self._leaned[model] = told
            for outlook in open_to:
                outlook.rates.lean_on(seen)

    def _fill(self) -> float:
        # Memory is kept free for those who will be back: where few are, it is for whoever comes.
        return self._live_share / max(self.returns.share, 0.01)

    def _fits(self, ask: Ask, outlook: Outlook) -> bool:
        # Who is there already may grow into what is kept free of newcomers.
        fill = self._fill()
        if outlook.holdings.is_live(ask.session):
            fill /= self._live_share
        return outlook.fits(ask, fill)

    def _margin_s(self, ask: Ask, home: Outlook) -> float:
        anew_s = home.rates.slope_s * work(0, ask.prompt_tokens)
        return max(_LEAST_MARGIN_S, self._margin * anew_s)

    def _best(
        self, ask: Ask, outlooks: Sequence[Outlook], prices_s: Sequence[float], best_s: float
    ) -> Outlook:
        """The cheapest; of those that are as good the parent's, then the lightest, then by rank,
        so that routers agree."""
        limit_s = best_s * _AS_GOOD
        tied = [o for o, price_s in zip(outlooks, prices_s, strict=True) if price_s <= limit_s]
        if len(tied) == 1:
            return tied[0]
        for outlook in tied:
            if outlook.id == ask.near:
                return outlook
        loads = [(o.in_flight, o.holdings.live_tokens) for o in tied]
        least = min(loads)
        lightest = [o for o, load in zip(tied, loads, strict=True) if load == least]
        return rendezvous(ask.group or ask.session, lightest) if len(lightest) > 1 else lightest[0]

    def _reason(
        self, ask: Ask, best: Outlook, price: Price, home: Outlook | None,
        open_to: Sequence[Outlook], failed: Collection[str],
    ) -> str:  # fmt: skip
        if failed:
            return "failover"
        if ask.bound is None:
            if best.id == ask.near:
                return "parent"
            return "prefix" if price.cached_tokens else "new"
        if home is None:
            known = any(outlook.id == ask.bound.replica for outlook in open_to)
            return "restarted" if known else "replica_gone"
        return "cheaper" if self._fits(ask, home) else "memory"


def home_of(ask: Ask, open_to: Sequence[Outlook]) -> Outlook | None:
    """The replica that the session is bound to, if it is there as it was."""
    bound = ask.bound
    if bound is None:
        return None
    for outlook in open_to:
        if outlook.id == bound.replica and outlook.incarnation == bound.incarnation:
            return outlook
    return None


def _decision(ask: Ask, chosen: Outlook, reason: str, price: Price) -> Decision:
    bound = ask.bound
    binding: Literal["keep", "claim", "rebind"]
    if bound is None:
        binding = "claim"
    elif (bound.replica, bound.incarnation) == (chosen.id, chosen.incarnation):
        binding = "keep"
    else:
        binding = "rebind"
    return Decision(
        replica=chosen.id,
        incarnation=chosen.incarnation,
        reason=reason,
        binding=binding,
        predicted_cached_tokens=price.cached_tokens,
        predicted_ttft_s=price.ttft_s if chosen.rates.turns else None,  # no guess is better
    )
