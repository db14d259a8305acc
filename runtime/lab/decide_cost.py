"""`python -m sessile.lab.decide_cost`: what one decision costs, and what a router has to remember.

It fills a scheduler with sessions that have all had a turn and pause, with a shared system prompt
each, and then asks where turns of several kinds should go.
"""

import resource
import sys
from collections.abc import Callable
from random import Random
from time import thread_time

import msgspec

from sessile.router.outlook import Outlook
from sessile.router.policy import Ask
from sessile.router.scheduler import Limits, Scheduler
from sessile.sessions.record import Binding

_BLOCK_TOKENS = 256
_SYSTEM_BLOCKS = 8
_SYSTEMS = 32
_RUNNING = 20  # turns under way at each replica


class DecideCost(msgspec.Struct):
    """The figures: microseconds of processor time for one decision of each kind, and for a turn
    from its submission to its end; `bound` to a replica, `away` from one that has left."""

    replicas: int
    sessions: int
    bound_p50_us: float
    bound_p99_us: float
    away_p50_us: float
    away_p99_us: float
    new_p50_us: float
    new_p99_us: float
    whole_turn_us: float
    memory_mb: float


def measure(replicas: int = 64, sessions: int = 100_000, turns: int = 2_000) -> DecideCost:
    """Fill a scheduler, and time it."""
    before = _peak_bytes()
    pool = _Pool(replicas, Random(1))
    pool.fill(sessions)
    memory = _peak_bytes() - before
    pool.run(_RUNNING * replicas)
    bound = _times(turns, lambda: pool.decide(pool.again()))
    away = _times(turns, lambda: pool.decide(pool.again(home="gone")))
    new = _times(turns, lambda: pool.decide(pool.new()))
    began = thread_time()
    for _ in range(turns):
        pool.turn(pool.again())
    return DecideCost(
        replicas=replicas,
        sessions=sessions,
        bound_p50_us=bound[len(bound) // 2],
        bound_p99_us=bound[len(bound) * 99 // 100],
        away_p50_us=away[len(away) // 2],
        away_p99_us=away[len(away) * 99 // 100],
        new_p50_us=new[len(new) // 2],
        new_p99_us=new[len(new) * 99 // 100],
        whole_turn_us=(thread_time() - began) / turns * 1e6,
        memory_mb=memory / 2**20,
    )


class _Pool:
    """Replicas, a scheduler, and sessions whose turns it has seen."""

    def __init__(self, replicas: int, random: Random) -> None:
        self._random = random
        self._scheduler = Scheduler(Limits())
        self._outlooks = [Outlook(f"r{number}", "1") for number in range(replicas)]
        for outlook in self._outlooks:
            outlook.resize(1_000_000)
            outlook.slots = 64
        self._seen: list[tuple[int, int, str]] = []
        self._now = 0.0
        self._turns = 0

    def fill(self, sessions: int) -> None:
        for _ in range(sessions):
            self.turn(self.new())

    def run(self, turns: int) -> None:
        """So many turns are under way from now on."""
        for _ in range(turns):
            ask = self.new()
            decision = self._scheduler.submit(ask, self._outlooks, self._now)
            if decision is not None:
                self._scheduler.first_token(ask.turn, self._now)

    def new(self) -> Ask:
        """The first turn of a session with one of the system prompts."""
        self._turns += 1
        return self._ask(self._turns, self._random.randint(4, 24), None)

    def again(self, home: str | None = None) -> Ask:
        """The next turn of some session."""
        self._turns += 1
        number, own, replica = self._random.choice(self._seen)
        return self._ask(number, own, Binding(home or replica, "1", 1))

    def _ask(self, number: int, own: int, bound: Binding | None) -> Ask:
        # NOTE: made anew each time: what is kept for the test is not the scheduler's memory.
        system = number % _SYSTEMS
        blocks = [hash((system, n)) for n in range(_SYSTEM_BLOCKS)]
        blocks += [hash((system, number, n)) for n in range(own)]
        return Ask(
            session=f"ses_{number:024x}", turn=f"t{self._turns}", model="m", bound=bound,
            blocks=tuple(blocks), block_tokens=_BLOCK_TOKENS,
            prompt_tokens=_BLOCK_TOKENS * len(blocks) + (400 if bound else 100), output_tokens=200,
        )  # fmt: skip

    def decide(self, ask: Ask) -> Callable[[], object]:
        return lambda: self._scheduler.decide(ask, self._outlooks, self._now)

    def turn(self, ask: Ask) -> None:
        """A whole turn: decided, booked, ended, its session pauses."""
        scheduler = self._scheduler
        self._now += 0.01
        decision = scheduler.submit(ask, self._outlooks, self._now)
        if decision is None:
            scheduler.end(ask.turn, self._now)
            return
        scheduler.first_token(ask.turn, self._now + 0.1)
        scheduler.end(
            ask.turn, self._now + 1.0, prompt_tokens=ask.prompt_tokens,
            cached_tokens=decision.predicted_cached_tokens, output_tokens=200, tpot_s=0.01,
            pause="bash",
        )  # fmt: skip
        if ask.bound is None:
            self._seen.append((self._turns, len(ask.blocks) - _SYSTEM_BLOCKS, decision.replica))
        scheduler.live.expire(self._now)


def _peak_bytes() -> int:
    """The most memory that this process has had."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _times(turns: int, prepare: Callable[[], Callable[[], object]]) -> list[float]:
    """Microseconds of processor time of each, sorted."""
    found = []
    for _ in range(turns):
        decide = prepare()
        began = thread_time()
        decide()
        found.append((thread_time() - began) * 1e6)
    return sorted(found)


if __name__ == "__main__":
    cost = measure(*(int(argument) for argument in sys.argv[1:]))
    sys.stdout.write(msgspec.json.format(msgspec.json.encode(cost)).decode() + "\n")
