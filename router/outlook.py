"""What a router expects of one replica: its rates, its memory, and the work under way there. Pure.

The scheduler reads and books here; the pool says what the replica reports of itself. Nothing here
speaks to the replica, and every time is an argument.
"""

from collections.abc import Sequence
from math import inf
from typing import Any

import msgspec

from sessile.router.adapters import Shelf
from sessile.router.blocks import BlockTree
from sessile.router.holdings import Found, Holdings, Index
from sessile.router.policy import Ask
from sessile.router.price import LONG_TOKENS, Price, Rates, Traffic, work

_HARM_PAUSED = 1.0  # a session that pauses will be back before long
_WORTH_S = 0.05  # what a turn must save if it is to wait for another's prefill
_LATE = 4.0  # a prefill that takes so many times as long as foreseen is not waited for
_LATE_S = 0.5


class Run(msgspec.Struct, gc=False):
    """One turn under way at a replica."""

    session: str
    work: float
    tokens: int
    output_tokens: int
    cached_tokens: int
    ahead: float
    age: int | None
    began_at: float
    blocks: tuple[int, ...] = ()
    found: Found = Found(0)
    first_at: float | None = None
    loads: bool = False  # an adapter, first


class Outlook:
    """One replica as the scheduler sees it. Made by the pool, lives as long as its replica.

    `capacity_tokens` is the KV memory that running turns need, `host_tokens` what the engine keeps
    beside it (a host cache), both None where it does not say; `slots` how many turns run at once.
    `foreign_*` is the work of other routers; what their sessions need counts in `holdings`.
    Invariant: `pending_work` is the sum over the runs that have given no token yet, of which there
    are `_computing`; `computing` holds the blocks that they were the first to need.
    """

    def __init__(self, id: str, incarnation: str = "") -> None:
        self.id = id
        self.incarnation = incarnation
        self.capacity_tokens: int | None = None
        self.host_tokens = 0
        self.slots: int | None = None
        self.speculates = False
        self.lacks: frozenset[str] = frozenset()  # of what turns may need
        self.device: str | None = None  # that it shares with others of the same, if that is known
        self.reported_queue = 0
        self.foreign_running = 0
        self.foreign_work = 0.0
        self.rates = Rates.prior()
        self.traffic = Traffic()
        self.holdings = Holdings(None)
        self.tree: BlockTree | None = None  # what its KV events tell; None where it has no feed
        self.shelf = Shelf()
        self.runs: dict[str, Run] = {}
        self.computing: dict[int, str] = {}  # by which turn
        self.paused: set[str] = set()
        self.pending_work = 0.0
        self._computing = 0
        self._running: dict[str, int] = {}  # runs of each session
        self._prefilling_since = 0.0
        self._slot_at: float | None = None  # when the next slot is free, until a run changes that

    def reset(self, incarnation: str) -> None:
        """The replica started anew: its memory is empty, its rates hold."""
        self.incarnation = incarnation
        self.holdings.leave()
        self.holdings = Holdings(self.total_tokens)
        self.shelf.clear()
        self.paused.clear()

    def resize(self, capacity_tokens: int | None, host_tokens: int = 0) -> None:
        """What the replica says of its memory."""
        self.capacity_tokens, self.host_tokens = capacity_tokens, host_tokens
        self.holdings.capacity_tokens = self.total_tokens

    @property
    def total_tokens(self) -> int | None:
        """KV memory of both kinds."""
        return None if self.capacity_tokens is None else self.capacity_tokens + self.host_tokens

    @property
    def in_flight(self) -> int:
        """Turns running or waiting there, of all routers."""
        return len(self.runs) + self.foreign_running

    @property
    def others(self) -> float:
        """How many sessions a prefill there holds up."""
        return len(self.runs) + self.foreign_running + _HARM_PAUSED * len(self.paused)

    @property
    def queued(self) -> int:
        """Turns that wait there for a slot, as far as can be told."""
        over = self.in_flight - self.slots if self.slots else 0
        return max(over, self.reported_queue, 0)

    def describe(self) -> dict[str, Any]:
        """What is believed of the replica, for people: rates in seconds, memory in tokens."""
        rates = self.rates
        return {
            "prefill_tokens_per_s": 1.0 / rates.slope_s if rates.slope_s else None,
            "base_s": rates.base_s,
            "tpot_s": rates.tpot_s,
            "turns_learned": rates.turns,
            "capacity_tokens": self.capacity_tokens,
            "host_tokens": self.host_tokens,
            "held_tokens": self.holdings.tokens,
            "live_tokens": self.holdings.live_tokens,
            "running": len(self.runs),
            "running_elsewhere": self.foreign_running,
            "paused": len(self.paused),
            "pending_work_tokens": round(self.pending_work),
        }

    # -- what a turn would cost

    def wait_s(self, now: float) -> float:
        """How long a turn sent now waits for what was sent before it."""
        ahead_s = self.rates.slope_s * (self.pending_work + self.foreign_work)
        if self.pending_work:
            ahead_s = max(0.0, ahead_s - (now - self._prefilling_since))
        if self.slots and self.in_flight >= self.slots:
            ahead_s = max(ahead_s, self._slot_s(now))
        return ahead_s

    def load_s(self, ask: Ask, now: float) -> float:
        """How long the turn waits until its adapter is loaded here."""
        if ask.base is None or ask.model in self.shelf.loaded:
            return 0.0
        return self.shelf.wait_s(ask.model, ask.load_s, self._slot_s(now))

    def held(self, ask: Ask) -> int:
        """Tokens of the prompt that are cached here: by the engine's own word for a session that
        has run here, else as the model believes. An engine that names no session says nothing."""
        tree = self.tree
        if tree is not None and tree.sessions and self.holdings.age(ask.session) is not None:
            told = tree.held_tokens(ask.attribution)
            if told is not None:
                return told + (tree.host_tokens(ask.attribution) or 0)
        return self.holdings.held(ask.session, ask.blocks)

    def price(self, ask: Ask, now: float) -> Price:
        """The price of the turn here."""
        tokens = ask.prompt_tokens
        cached = min(self.held(ask), max(0, tokens - 1))
        amount = work(cached, tokens - cached)
        rates, wait_s = self.rates, self.wait_s(now)
        prefill_s = rates.prefill_s(amount)
        others = self.others + self.traffic.coming(now, rates.slope_s, wait_s + prefill_s)
        if ask.base is not None:
            wait_s += self.load_s(ask, now)
        return Price(wait_s, prefill_s, rates.slope_s * amount * others, cached)

    def fits(self, ask: Ask, fill: float) -> bool:
        """Whether the memory holds the turn beside all that is live, or it is alone there."""
        total = self.total_tokens
        if total is None:
            return True
        live = self.holdings.live_tokens
        if not live:
            return True
        tokens = ask.prompt_tokens + ask.output_tokens
        return live + self.holdings.need(ask.session, ask.blocks, tokens) <= fill * total

    def _slot_s(self, now: float) -> float:
        """When the next slot is free: the least that a running turn has left."""
        if self._slot_at is not None:
            return max(0.0, self._slot_at - now)
        left = []
        for run in self.runs.values():
            decode_s = run.output_tokens * self.rates.tpot_s
            if run.first_at is None:
                left.append(self.rates.prefill_s(run.work) + decode_s)
            else:
                left.append(max(0.0, decode_s - (now - run.first_at)))
        left.sort()
        place = min(max(0, self.in_flight - (self.slots or 0)), len(left) - 1)
        self._slot_at = now + (left[place] if left else 0.0)
        return self._slot_at - now

    # -- what is under way

    def start(self, ask: Ask, cached_tokens: int, now: float) -> None:
        """A turn is sent here: its prompt and expected reply are live from now on."""
        session = ask.session
        amount = work(cached_tokens, ask.prompt_tokens - cached_tokens)
        if not self.pending_work:
            self._prefilling_since = now
        tokens = ask.prompt_tokens + ask.output_tokens
        self._computing += 1
        self._running[session] = self._running.get(session, 0) + 1
        self.runs[ask.turn] = run = Run(
            session, amount, tokens, ask.output_tokens, cached_tokens, self._ahead(now),
            self.holdings.age(session), now,
            loads=ask.base is not None and ask.model not in self.shelf.loaded,
        )  # fmt: skip
        self.compute(ask, cached_tokens)
        self.traffic.add(now, amount)
        self.pending_work += amount
        self._slot_at = None
        self.paused.discard(session)
        run.found = self.holdings.use(session, ask.blocks, ask.block_tokens, tokens)

    def compute(self, ask: Ask, cached_tokens: int) -> None:
        """The turn computes its blocks behind so many tokens, but for those that another does."""
        run = self.runs.get(ask.turn)
        if run is not None and run.first_at is None:
            rest = ask.blocks[cached_tokens // ask.block_tokens :]
            first = self.computing.setdefault
            run.blocks = tuple(key for key in rest if first(key, ask.turn) == ask.turn)

    def leader(self, ask: Ask) -> tuple[str, float] | None:
        """The turn that computes at this moment what this one shares with it, and how long it is
        worth waiting for; None where it would save nothing to speak of. Engines compute anew what
        is not in their cache yet, so many children sent at once would each compute their parent's
        prefix."""
        run = self.runs.get(ask.turn)
        if run is None or len(self.computing) <= len(run.blocks):
            return None
        shared, leader = 0, ""
        for key in ask.blocks:
            owner = self.computing.get(key, ask.turn)
            if owner != ask.turn:
                shared, leader = shared + 1, owner
        ahead = self.runs.get(leader)
        if ahead is None or self.rates.slope_s * shared * ask.block_tokens < _WORTH_S:
            return None
        foreseen_s = self.rates.prefill_s(ahead.ahead + ahead.work)
        return leader, ahead.began_at + _LATE * foreseen_s + _LATE_S

    def first_token(self, turn: str, now: float) -> None:
        """A turn's first token has come."""
        run = self.runs.get(turn)
        if run is not None and run.first_at is None:
            run.first_at = now
            self._settle(run, now)

    def end(self, turn: str, now: float) -> Run | None:
        """A turn is over, well or not; what was booked of it."""
        run = self.runs.pop(turn, None)
        self._slot_at = None
        if run is None:
            return None
        if run.first_at is None:
            self._settle(run, now)
        left = self._running.pop(run.session) - 1
        if left:
            self._running[run.session] = left
        return run

    def has(self, session: str) -> bool:
        """Whether a turn of the session runs here."""
        return session in self._running

    def _ahead(self, now: float) -> float:
        """The prefill work that is still to be done before that of a turn sent now."""
        done = (now - self._prefilling_since) / max(self.rates.slope_s, 1e-9)
        ahead = self.pending_work + self.foreign_work
        return max(0.0, ahead - done) if self.pending_work else ahead

    def _settle(self, run: Run, now: float) -> None:
        for key in run.blocks:
            del self.computing[key]
        run.blocks = ()
        self._computing -= 1
        self.pending_work = max(0.0, self.pending_work - run.work) if self._computing else 0.0
        self._prefilling_since = now
        self._slot_at = None

    def learn(
        self, run: Run, prompt_tokens: int, cached_tokens: int | None, output_tokens: int,
        tpot_s: float | None, model: Rates,
    ) -> tuple[float, float] | None:  # fmt: skip
        """What came of a turn: rates from its times, its replica's and its model's; the memory's
        model from its cached tokens. The work and the seconds of its first token, if they tell
        something."""
        first = None
        if cached_tokens is not None:
            self.holdings.correct(run.cached_tokens, cached_tokens, run.age)
            if run.first_at is not None and not self.queued and not run.loads:
                amount = run.ahead + work(cached_tokens, prompt_tokens - cached_tokens)
                first = (amount, run.first_at - run.began_at)
                self.observe(*first, model)
        if tpot_s is not None and output_tokens > 4:
            for rates in (self.rates, model):
                rates.observe_decode(tpot_s)
        return first

    def observe(self, amount: float, seconds: float, model: Rates) -> None:
        """A first token has come here, after so much work: the replica's rates learn from it, and
        those of its model anywhere."""
        for rates in (self.rates, model):
            rates.observe_first_token(amount, seconds)
        self.rates.lean_on(model)


def totals(
    index: Index, outlooks: Sequence[Outlook], ask: Ask, now: float, *, fill: float,
    later_tokens: float,
) -> list[float]:  # fmt: skip
    """`price(ask, now).total_s` at each replica, and `inf` where it does not fit; a `fill` of
    infinity takes whatever comes. `later_tokens` are those that the session's later turns will
    compute there. All of them join the index.

    NOTE: a decision looks at every replica, so this is `price` and `fits` once more, in one loop
    that leaves out whatever cannot matter; a test holds them together.
    """
    found: list[float] = []
    blocks, prompt_tokens = ask.blocks, ask.prompt_tokens
    tokens = prompt_tokens + ask.output_tokens
    alone = tokens - ask.block_tokens * len(blocks)
    mask = 0
    for o in outlooks:
        if o.holdings.index is not index:
            index.join(o.holdings)
        mask |= o.holdings.bit
    stood = index.masks.get(ask.session, 0)
    held = [
        (bits, min(depth * ask.block_tokens, prompt_tokens - 1))
        for bits, depth in index.leading(blocks, mask & ~stood)
    ]
    for o in outlooks:
        holdings, rates = o.holdings, o.rates
        bit = holdings.bit
        slope_s, in_flight = rates.slope_s, len(o.runs) + o.foreign_running
        others = in_flight + _HARM_PAUSED * len(o.paused)
        if o.capacity_tokens is not None:
            live = holdings.live_tokens
            if live:
                room = fill * (o.capacity_tokens + o.host_tokens) - live
                if room < tokens and (
                    (room < alone and not holdings.is_live(ask.session))
                    or room < holdings.need(ask.session, blocks, tokens)
                ):
                    found.append(inf)
                    continue
        if stood & bit:
            found.append(o.price(ask, now).total_s + later_tokens * slope_s * others)
            continue
        cached = 0
        for bits, amount in held:
            if bits & bit:
                cached = amount
                break
        pending = o.pending_work
        wait_s = slope_s * (pending + o.foreign_work)
        if pending:
            wait_s -= now - o._prefilling_since
            if wait_s < 0.0:
                wait_s = 0.0
        if o.slots and in_flight >= o.slots:
            wait_s = max(wait_s, o._slot_s(now))
        rest = prompt_tokens - cached
        work_s = slope_s * rest * (1.0 + (cached + 0.5 * rest) / LONG_TOKENS)
        busy_s = wait_s + rates.base_s + work_s
        coming = o.traffic.coming(now, slope_s, busy_s)
        found.append(busy_s + work_s * (others + coming) + later_tokens * slope_s * others)
    if ask.base is not None:
        for n, o in enumerate(outlooks):
            if not stood & o.holdings.bit:
                found[n] += o.load_s(ask, now)
    return found
