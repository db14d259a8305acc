"""Which sessions are between two turns, and whose KV memory is worth holding. Pure.

`returns` says how likely a pause ends soon; here are the pauses themselves. The scheduler lets go
of the memory, when it is told to here.
"""

from heapq import heappop, heappush
from math import inf

import msgspec

from sessile.router.returns import Returns

_GIVEN_UP_S = 600.0  # a session that was away for so long is not expected at all


class Pause(msgspec.Struct, eq=False, gc=False):
    """A session between two turns: where, what it waits for, and until when its memory is held.

    `told` is a lease that somebody asked for, `program` the session that began its program. One
    that runs at another `router` is a pause too, in case its end is never told: it teaches nothing.
    """

    replica: str
    kind: str
    since: float
    until: float
    program: str = ""
    held: bool = True
    told: bool = False
    router: str | None = None
    counted_s: float = 0.0


class Pauses:
    """All pauses of one router. Bounded: each is forgotten after ten minutes."""

    def __init__(self) -> None:
        self.returns = Returns()
        self._pauses: dict[str, Pause] = {}
        self._ends: list[tuple[float, str]] = []  # a heap of when each is to be looked at
        self._looks: dict[str, float] = {}  # the first of these, by session
        # By replica and kind, those whose memory may be let go of, the oldest first.
        self._loose: dict[str, dict[str, dict[str, Pause]]] = {}
        self._programs: dict[str, dict[str, None]] = {}

    def __contains__(self, session: str) -> bool:
        return session in self._pauses

    def __len__(self) -> int:
        return len(self._pauses)

    def get(self, session: str) -> Pause | None:
        """Its pause, to be looked at only."""
        return self._pauses.get(session)

    def of(self, program: str) -> list[str]:
        """Those of the program that pause."""
        return list(self._programs.get(program, ()))

    def begin(self, session: str, replica: str, kind: str, now: float, program: str = "") -> None:
        """A turn has ended, and the session waits for something of that kind."""
        self.drop(session)
        pause = Pause(replica, kind, now, now + self.returns.worth_s(kind), program)
        self._add(session, pause)
        if program:
            self._programs.setdefault(program, {})[session] = None
        self._loose.setdefault(replica, {}).setdefault(kind, {})[session] = pause

    def away(self, session: str, replica: str, now: float, router: str) -> None:
        """The session runs at another router."""
        self.drop(session)
        self._add(session, Pause(replica, "", now, now + _GIVEN_UP_S, router=router))

    def at(self, router: str) -> list[str]:
        """Those that run at another router."""
        return [session for session, pause in self._pauses.items() if pause.router == router]

    def returned(self, session: str, now: float) -> None:
        """The session sends its next turn."""
        pause = self._pauses.get(session)
        if pause is not None:
            self.drop(session)
            if pause.router is None:
                self._observe(pause, now, returned=True)
                self.returns.count(returned=True)

    def move(self, session: str, replica: str) -> None:
        """The session goes on at another replica; it pauses still, as long as it has."""
        pause = self._pauses.get(session)
        if pause is None or pause.router is not None:
            return
        self._tie(session, pause)
        pause.replica = replica
        if pause.held and not pause.told:
            self._loose.setdefault(replica, {}).setdefault(pause.kind, {})[session] = pause

    def hold(self, session: str, now: float, seconds: float) -> bool:
        """Hold its memory for so long, whatever happens; False: it does not pause."""
        pause = self._pauses.get(session)
        if pause is None or pause.router is not None:
            return False
        self._tie(session, pause)
        pause.until, pause.told = now + seconds, seconds > 0
        self._look_at(session, pause.until)
        return True

    def let_go(self, session: str) -> None:
        """Its memory is not held any longer; that it may be back is still known."""
        pause = self._pauses.get(session)
        if pause is not None:
            self._tie(session, pause)
            pause.held = False

    def drop(self, session: str) -> None:
        """Forget the pause."""
        pause = self._pauses.pop(session, None)
        if pause is None:
            return
        self._tie(session, pause)
        of = self._programs.get(pause.program)
        if of is not None:
            of.pop(session, None)
            if not of:
                del self._programs[pause.program]

    def over(self, now: float) -> tuple[list[str], list[str]]:
        """Those that have lasted too long, whose memory is to be let go of; and those that are
        given up for good."""
        found, given_up = [], []
        while self._ends and self._ends[0][0] <= now:
            at, session = heappop(self._ends)
            if self._looks.get(session) == at:
                del self._looks[session]
            pause = self._pauses.get(session)
            if pause is None:
                continue
            if pause.until > now:
                self._look_at(session, pause.until)
                continue
            if pause.held:
                found.append(session)
            if pause.router is None:
                self._observe(pause, now, returned=False)
                if pause.held:  # else memory was short, which says nothing of it
                    self.returns.count(returned=False)
            if pause.router is not None or now - pause.since >= _GIVEN_UP_S:
                self.drop(session)
                given_up.append(session)
            else:
                pause.until = pause.since + _GIVEN_UP_S
                self._look_at(session, pause.until)
        return found, given_up

    def poorest(self, replica: str, rate: float, now: float) -> list[str]:
        """Those at the replica that return at less than this rate; their memory is to be let go of.
        Of each kind the oldest are looked at, as long as that holds for them."""
        found = []
        for kind, pauses in self._loose.get(replica, {}).items():
            for session, pause in pauses.items():
                self._observe(pause, now, returned=False)
                if self.returns.rate(kind, now - pause.since) >= rate:
                    break
                found.append(session)
        return found

    def _add(self, session: str, pause: Pause) -> None:
        self._pauses[session] = pause
        self._look_at(session, pause.until)

    def _look_at(self, session: str, at: float) -> None:
        """Look at its pause then, unless that is done before: it may be another one by then."""
        if at < self._looks.get(session, inf):
            self._looks[session] = at
            heappush(self._ends, (at, session))

    def _tie(self, session: str, pause: Pause) -> None:
        """Nobody may let go of it for want of memory."""
        kinds = self._loose.get(pause.replica)
        pauses = kinds.get(pause.kind) if kinds is not None else None
        if kinds is not None and pauses is not None and pauses.get(session) is pause:
            del pauses[session]
            if not pauses:
                del kinds[pause.kind]
                if not kinds:
                    del self._loose[pause.replica]

    def _observe(self, pause: Pause, now: float, returned: bool) -> None:
        elapsed_s = now - pause.since
        self.returns.observe(pause.kind, pause.counted_s, elapsed_s, returned)
        pause.counted_s = elapsed_s
