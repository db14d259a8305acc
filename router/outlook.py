"""What a router expects of one replica: its rates, its memory, and the work under way there. Pure.

The scheduler reads and books here; the pool says what the replica reports of itself. Nothing here
speaks to the replica, and every time is an argument.
"""

from collections.abc import Sequence
from math import inf

import msgspec

from sessile.router.holdings import BlockKey, Holdings, Index
from sessile.router.price import LONG_TOKENS, Price, Rates, Traffic, work

_HARM_PAUSED = 0.3  # a session that pauses suffers from a prefill only if it is back by then


class Run(msgspec.Struct):
    """One turn under way at a replica."""

    session: str
    work: float
    tokens: int
    output_tokens: int
    cached_tokens: int
    ahead: float
    age: int | None
    began_at: float
    first_at: float | None = None


class Outlook:
    """One replica as the scheduler sees it. Made by the pool, lives as long as its replica.

    `capacity_tokens` is the KV memory that running turns need, `host_tokens` what the engine keeps
    beside it (a host cache), both None where it does not say; `slots` how many turns run at once.
    `foreign_*` is the work of other routers. Invariant: `pending_work` is the sum over the runs
    that have given no token yet.
    """

    def __init__(self, id: str, incarnation: str = "") -> None:
        self.id = id
        self.incarnation = incarnation
        self.capacity_tokens: int | None = None
        self.host_tokens = 0
        self.slots: int | None = None
        self.reported_queue = 0
        self.foreign_running = 0
        self.foreign_work = 0.0
        self.foreign_tokens = 0
        self.rates = Rates.prior()
        self.traffic = Traffic()
        self.holdings = Holdings(None)
        self.runs: dict[str, Run] = {}
        self.paused: set[str] = set()
        self.sessions = 0
        self.pending_work = 0.0
        self.running_tokens = 0  # NOTE: what runs share counts twice
        self._prefilling_since = 0.0
        self._slot_at: float | None = None  # when the next slot is free, until a run changes that

    def reset(self, incarnation: str) -> None:
        """The replica started anew: its memory is empty, its rates hold."""
        self.incarnation = incarnation
        self.holdings.leave()
        self.holdings = Holdings(self.total_tokens)
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
    def queued(self) -> int:
        """Turns that wait there for a slot, as far as can be told."""
        over = self.in_flight - self.slots if self.slots else 0
        return max(over, self.reported_queue, 0)

    # -- what a turn would cost

    def wait_s(self, now: float) -> float:
        """How long a turn sent now waits for what was sent before it."""
        ahead_s = self.rates.slope_s * (self.pending_work + self.foreign_work)
        if self.pending_work:
            ahead_s = max(0.0, ahead_s - (now - self._prefilling_since))
        if self.slots and self.in_flight >= self.slots:
            ahead_s = max(ahead_s, self._slot_s(now))
        return ahead_s

    def price(self, session: str, blocks: Sequence[BlockKey], tokens: int, now: float) -> Price:
        """The price of a prompt of `tokens` here."""
        cached = min(self.holdings.held(session, blocks), max(0, tokens - 1))
        prefill_s = self.rates.prefill_s(work(cached, tokens - cached))
        wait_s = self.wait_s(now)
        others = len(self.runs) + self.foreign_running + _HARM_PAUSED * len(self.paused)
        others += self.traffic.coming(now, self.rates.slope_s, wait_s + prefill_s)
        return Price(wait_s, prefill_s, prefill_s * others, cached)

    def fits(self, session: str, blocks: Sequence[BlockKey], tokens: int, fill: float) -> bool:
        """Whether the memory holds the session beside all that are live, or it is alone there."""
        total = self.total_tokens
        if total is None or self.capacity_tokens is None:
            return True
        live = self.holdings.live_tokens + self.foreign_tokens
        if not live:
            return True
        if live + self.holdings.need(session, blocks, tokens) > fill * total:
            return False
        if not self.host_tokens or not self.runs:
            return True
        return self.running_tokens + tokens <= self.capacity_tokens

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

    def start(
        self, turn: str, session: str, blocks: Sequence[BlockKey], block_tokens: int,
        prompt_tokens: int, output_tokens: int, cached_tokens: int, now: float,
    ) -> None:  # fmt: skip
        """A turn is sent here: its prompt and expected reply are live from now on."""
        amount = work(cached_tokens, prompt_tokens - cached_tokens)
        if not self.pending_work:
            self._prefilling_since = now
        tokens = prompt_tokens + output_tokens
        self.runs[turn] = Run(
            session, amount, tokens, output_tokens, cached_tokens,
            self.pending_work + self.foreign_work, self.holdings.age(session), now,
        )  # fmt: skip
        self.traffic.add(now, amount)
        self.pending_work += amount
        self.running_tokens += tokens
        self._slot_at = None
        self.paused.discard(session)
        self.holdings.use(session, blocks, block_tokens, tokens)

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
        if run is not None:
            self.running_tokens -= run.tokens
            if run.first_at is None:
                self._settle(run, now)
        return run

    def _settle(self, run: Run, now: float) -> None:
        self.pending_work = max(0.0, self.pending_work - run.work)
        self._prefilling_since = now
        self._slot_at = None
        if not any(other.first_at is None for other in self.runs.values()):
            self.pending_work = 0.0

    def learn(
        self, run: Run, prompt_tokens: int, cached_tokens: int | None, output_tokens: int,
        tpot_s: float | None,
    ) -> None:  # fmt: skip
        """What came of a turn: rates from its times, the memory's model from its cached tokens."""
        if cached_tokens is not None:
            self.holdings.correct(run.cached_tokens, cached_tokens, run.age)
            if run.first_at is not None and run.ahead < 1.0:
                amount = work(cached_tokens, prompt_tokens - cached_tokens)
                self.rates.observe_first_token(amount, run.first_at - run.began_at)
        if tpot_s is not None and output_tokens > 4:
            self.rates.observe_decode(tpot_s)


def totals(
    index: Index, outlooks: Sequence[Outlook], blocks: Sequence[BlockKey], block_tokens: int,
    prompt_tokens: int, tokens: int, now: float, fill: float,
) -> list[float]:  # fmt: skip
    """`price(...).total_s` of a session that none of these replicas knows, and `inf` where it does
    not fit: `tokens` are those of the prompt and its reply; a `fill` of infinity takes all.

    NOTE: a decision looks at every replica, so this is `price` and `fits` once more, in one loop
    that leaves out whatever cannot matter; a test holds them together.
    """
    found: list[float] = []
    in_blocks = block_tokens * len(blocks)
    mask = 0
    for o in outlooks:
        if o.holdings.index is not index:
            o.holdings.leave()
            index.join(o.holdings)
        mask |= o.holdings.bit
    held = [
        (bits, min(depth * block_tokens, prompt_tokens - 1))
        for bits, depth in index.leading(blocks, mask)
    ]
    for o in outlooks:
        holdings, rates = o.holdings, o.rates
        capacity = o.capacity_tokens
        if capacity is not None and fill < inf:
            live = holdings.live_tokens + o.foreign_tokens
            if live:
                room = fill * (capacity + o.host_tokens) - live
                if room < tokens and (
                    room < tokens - in_blocks or room < holdings.need("", blocks, tokens)
                ):
                    found.append(inf)
                    continue
                if o.host_tokens and o.runs and o.running_tokens + tokens > capacity:
                    found.append(inf)
                    continue
        cached, bit = 0, holdings.bit
        for bits, amount in held:
            if bits & bit:
                cached = amount
                break
        slope_s, in_flight = rates.slope_s, len(o.runs) + o.foreign_running
        pending = o.pending_work
        wait_s = slope_s * (pending + o.foreign_work)
        if pending:
            wait_s -= now - o._prefilling_since
            if wait_s < 0.0:
                wait_s = 0.0
        if o.slots and in_flight >= o.slots:
            wait_s = max(wait_s, o._slot_s(now))
        rest = prompt_tokens - cached
        prefill_s = rates.base_s + slope_s * rest * (1.0 + (cached + 0.5 * rest) / LONG_TOKENS)
        others = in_flight + _HARM_PAUSED * len(o.paused)
        others += o.traffic.coming(now, slope_s, wait_s + prefill_s)
        found.append(wait_s + prefill_s * (1.0 + others))
    return found
