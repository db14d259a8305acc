"""Two replicas in virtual time, one of which speculates, under sessions that a scheduler places."""

from collections import Counter
from itertools import count

from msgspec import structs

from sessile.router.outlook import Outlook
from sessile.router.policy import Ask
from sessile.router.scheduler import Limits, Scheduler
from sessile.sessions.record import Binding

TOKENS = 200
BATCHES = (1, 4, 16)  # turns at once, of what was measured


def plain(running):
    """A step of an 8B model on an H100."""
    return 0.0061 + 0.00004 * running


def verify(running):
    """The same with n-grams to verify: it pays from 1.5 tokens a step, and in a batch from 1.9."""
    return 0.009 + 0.00025 * running


def line(points):
    """Seconds a step by how many run, through those of `BATCHES`."""

    def step_s(running):
        low, high = (0, 1) if running <= 4 else (1, 2)
        share = (running - BATCHES[low]) / (BATCHES[high] - BATCHES[low])
        return points[low] + share * (points[high] - points[low])

    return step_s


class World:
    """Two replicas, one of which speculates; `shared` lets them take their steps in turn, as two
    processes on one GPU do, or says by how much both are slower while both are busy. Sessions run
    one turn after another, each decoded at its acceptance. A first token takes `latency_s`, in
    which the others decode, and then the computing of the prompt, in which they wait. A step is
    `longer_s` for each token of context of the turns there, in the mean, by kind. With `tells_last`
    it is said of a session's last turn that it is."""

    def __init__(
        self, *, shared, tells=True, device=None, counts=True, latency_s=0.02, base_s=0.01,
        slope_s=1 / 20_000, longer_s=(0.0, 0.0), tells_last=False, compiles_s=0.0,
        steps_s=(plain, verify), alike=True, first_tokens=500,
    ):  # fmt: skip
        self.brain = Scheduler(Limits())
        self.pool = [Outlook("off", "1"), Outlook("on", "1")]
        self.pool[1].speculates = True
        for outlook in self.pool:
            outlook.device = device
        self.shared = shared
        self.tells = tells
        self.counts = counts
        self.latency_s, self.base_s, self.slope_s = latency_s, base_s, slope_s
        self.longer_s = longer_s
        self.first_tokens = first_tokens  # of a session's first prompt
        self.alike = alike  # whether the sessions of all places begin alike
        self.plain, self.verify = steps_s
        self.tells_last = tells_last
        self.compiles_s = compiles_s
        self.compiling = {}  # seconds left, by replica and size of batch
        self.kind = 0  # of the sessions of all places, added to their places where they differ
        self.now = 0.0
        self.decode_s = 0.0  # of all turns, from their first tokens to their last
        self.reasons = Counter()
        self.where = Counter()
        self._ids = count()

    def run(self, accepts, turns, sessions, only=None):
        """Run so many sessions of each of those acceptances at once, one after another in each
        place; returns tokens a second of all. An acceptance may be of each turn. `only` is where
        all of them run, or where those of each place do."""
        places = [Place(length, number) for number, length in enumerate(accepts, 1)]
        if only is not None:
            homes = only if isinstance(only, list) else [only] * len(places)
            for place, home in zip(places, homes, strict=True):
                place.only = home
        began, made = self.now, 0
        self.left = sessions * len(places)
        while [p for p in places if p.turn or p.done] or self.left:
            coming = []
            for place in places:
                if place.turn is None and (place.done or self.left):
                    self.left -= not place.done
                    coming.append((place, self._ask(place, place.done + 1 == turns)))
            self._begin(coming)
            self._pass([p for p in places if p.turn is not None])
            for place in places:
                if place.turn is not None and place.tokens <= 1e-9:
                    made += TOKENS
                    self._end(place, turns)
        return made / (self.now - began)

    def _ask(self, place, last):
        if not place.done:
            place.session, place.bound = f"s{next(self._ids)}", None
        place.turn = f"t{next(self._ids)}"
        return Ask(
            session=place.session, turn=place.turn, model="m", bound=place.bound,
            prompt_tokens=self.first_tokens + 300 * place.done, output_tokens=TOKENS,
            opening=0 if self.alike else self.kind + place.number,
            last=last and self.tells_last,
        )  # fmt: skip

    def _begin(self, coming):
        """Those that come in one moment are all proposed before any is bound and booked."""
        fixed = [(place, ask) for place, ask in coming if place.only is not None]
        for place, ask in fixed:
            decision = self.brain.decide(ask, [place.only], self.now)
            self.brain.book(ask, decision, [place.only], self.now)
            self._sent(place, ask, decision)
        if fixed:
            return
        proposed = {
            ask.turn: self.brain.propose(ask, self.pool, self.now)
            for _, ask in coming
            if ask.bound is None
        }
        for place, ask in coming:
            decision = proposed.get(ask.turn)
            if decision is not None:
                bound = Binding(decision.replica, "1", 1)
                ask = structs.replace(ask, bound=bound, claimed=decision.reason)
            self._sent(place, ask, self.brain.submit(ask, self.pool, self.now))

    def _sent(self, place, ask, decision):
        self.reasons[decision.reason] += 1
        self.where[place.length, decision.replica] += 1
        moved = place.bound is None or place.bound.replica != decision.replica
        place.bound = Binding(decision.replica, "1", 1)
        place.cached = 0 if moved else ask.prompt_tokens - 300
        place.prompt = ask.prompt_tokens
        place.wait_s = self.latency_s
        place.prefill_s = self.base_s + (place.prompt - place.cached) * self.slope_s
        place.tokens = TOKENS

    def _pass(self, running):
        """Let time go on until the next thing happens. A prefill stops the decoding of the others
        at its replica, as SGLang's does."""
        rates = {p: 1.0 for p in running if p.wait_s}
        compiling = []
        for o in self.pool:
            mine, share = self._work(o, [p for p in running if not p.wait_s])
            size = o.id, (len(mine) - 1).bit_length()
            if mine and not mine[0].prefill_s and self.compiling.setdefault(size, self.compiles_s):
                compiling.append(size)
                continue
            for p in mine:
                decodes = o.speculates and not p.prefill_s
                rates[p] = share * (p.accepts if decodes else 1.0)
        ends_s = [(p.wait_s or p.prefill_s or p.tokens) / rate for p, rate in rates.items()]
        passes_s = min(ends_s + [self.compiling[size] for size in compiling])
        self.now += passes_s
        for size in compiling:
            self.compiling[size] = _less(self.compiling[size], passes_s)
        for p, rate in rates.items():
            if p.wait_s:
                p.wait_s = _less(p.wait_s, rate * passes_s)
            elif p.prefill_s:
                p.prefill_s = _less(p.prefill_s, rate * passes_s)
                if not p.prefill_s:
                    p.first_at = self.now
                    self.brain.first_token(p.turn, self.now)
            else:
                p.tokens -= rate * passes_s

    def _work(self, outlook, running):
        """What goes on at a replica, and how fast: a prefill in seconds, or steps."""
        mine = [p for p in running if p.bound.replica == outlook.id]
        prefill = [p for p in mine if p.prefill_s][:1]
        step_s = self._step_s(outlook.speculates, mine)
        others = [p for p in running if p not in mine]
        share = 1.0
        if self.shared and others:
            share = 0.5 if self.shared is True else 1.0 / self.shared
            if self.shared is True and not prefill and not any(p.prefill_s for p in others):
                other_s = self._step_s(not outlook.speculates, others)
                share = step_s / (step_s + other_s)
        if prefill:
            return prefill, share
        return mine, share / step_s

    def _step_s(self, speculates, running):
        step_s = (self.verify if speculates else self.plain)(max(1, len(running)))
        tokens = sum(p.prompt + TOKENS - p.tokens for p in running) / max(1, len(running))
        return step_s + self.longer_s[speculates] * tokens

    def _end(self, place, turns):
        self.decode_s += self.now - place.first_at
        yielded = place.accepts if self.tells and place.bound.replica == "on" else None
        place.done = (place.done + 1) % turns
        over = not place.done
        self.brain.end(
            place.turn, self.now, prompt_tokens=place.prompt, cached_tokens=place.cached,
            output_tokens=TOKENS if self.counts else None, yielded=yielded,
            pause=None if over else "tool",
        )  # fmt: skip
        place.turn = None


class Place:
    """Where one session runs after another."""

    def __init__(self, length, number):
        self.length = length
        self.number = number
        self.done = 0
        self.turn = None
        self.only = None

    @property
    def accepts(self):
        """Tokens a step of the turn that runs."""
        return self.length[self.done] if isinstance(self.length, tuple) else self.length


def _less(left, gone):
    return left - gone if left - gone > 1e-12 else 0.0
