"""Which session lives at which replica, and whose KV memory is let go of when it is short. Pure.

A session lives where a turn of it runs, and where it pauses while its memory is held (`pauses` says
how long that pays). Nothing here decides where a turn goes, and nothing speaks to a replica.
"""

from collections import deque
from collections.abc import Sequence
from itertools import count
from math import inf

from sessile.router.outlook import Outlook
from sessile.router.pauses import Pauses
from sessile.router.peers import News
from sessile.router.policy import Ask

_MOST_NEWS = 5_000
_MOST_RELEASED = 10_000
_SOON_RATE = 0.5  # who returns at such a rate, a second, is about to be back


class LiveSessions:
    """The live sessions of one router. Made by its scheduler, which books the turns.

    With `peers`, `news` is what to tell the other routers since it was last emptied, the oldest
    left out where that is too much. `released` are sessions whose memory is held no longer, and at
    which replica; it is emptied by whoever tells the engine.
    """

    def __init__(self, *, peers: bool) -> None:
        self.peers = peers
        self.news: deque[News] = deque(maxlen=_MOST_NEWS)
        self.released: deque[tuple[str, str]] = deque(maxlen=_MOST_RELEASED)
        self.pauses = Pauses()
        self.returns = self.pauses.returns
        self._outlooks: dict[str, Outlook] = {}  # where any has ever been
        self._homes: dict[str, Outlook] = {}
        self._born: dict[str, int] = {}  # in which order sessions came, while they are remembered
        self._births = count()

    def __contains__(self, session: str) -> bool:
        return session in self._homes

    def home(self, session: str) -> Outlook | None:
        """Where the session lives, if it does."""
        return self._homes.get(session)

    def is_home(self, session: str, replica: str) -> bool:
        """Whether the session's memory is held at the replica."""
        home = self._homes.get(session)
        return home is not None and home.id == replica

    def return_rate(self, session: str, now: float) -> float | None:
        """Returns a second to be expected of a session that pauses; None: it does not."""
        pause = self.pauses.get(session)
        if pause is None or pause.router is not None:
            return None
        return self.returns.rate(pause.kind, now - pause.since)

    # -- turns

    def begin(self, session: str, now: float) -> None:
        """The session sends a turn."""
        self.pauses.returned(session, now)
        if session not in self._born:
            self._born[session] = next(self._births)

    def settle(self, session: str, outlook: Outlook) -> None:
        """The session is live at this replica, and at no other."""
        self._outlooks[outlook.id] = outlook
        before = self._homes.get(session)
        if before is not None and before is not outlook:
            self._release(session, before)
        self._homes[session] = outlook

    def is_over(self, session: str, outlook: Outlook) -> bool:
        """The session's turns at this replica have ended. Returns whether it lives there; if it has
        moved meanwhile, nothing is held for it there any more."""
        if self._homes.setdefault(session, outlook) is outlook:
            return True
        self._release(session, outlook)
        return False

    def pause(
        self, session: str, outlook: Outlook, kind: str, now: float, program: str = ""
    ) -> None:
        """It waits for something of that kind; its memory is held, as long as that pays."""
        self.pauses.begin(session, outlook.id, kind, now, program)
        outlook.paused.add(session)

    def leave(self, session: str) -> None:
        """The session is not expected back."""
        self._give_up(session)
        self._born.pop(session, None)

    def forsake(self, session: str) -> None:
        """A turn left the queue unsent: unless another runs, its session is not there any more."""
        home = self._homes.get(session)
        if session in self.pauses or (home is not None and home.has(session)):
            return
        self.let_go(session)
        self._born.pop(session, None)

    # -- what is said of a session

    def lease(self, session: str, now: float, seconds: float) -> bool:
        """Hold a pausing session's memory for so long; 0 lets go of it. False: it does not
        pause."""
        if not self.pauses.hold(session, now, seconds):
            return False
        if not seconds:
            self.let_go(session)
        if self.peers:
            self.news.append(News("leased", session, seconds=seconds))
        return True

    def close(self, session: str) -> None:
        """The session is over: nothing is held for it, nor for those of its program, if it began
        one."""
        for other in self.pauses.of(session):
            if other != session:
                self._give_up(other)
        self.forget(session)
        if self.peers:
            self.news.append(News("closed", session))

    def forget(self, session: str) -> None:
        """The session is over, as it is at the other routers."""
        self.pauses.drop(session)
        self._born.pop(session, None)
        self.let_go(session)
        for outlook in self._outlooks.values():
            outlook.holdings.forget(session)

    # -- memory

    def expire(self, now: float) -> None:
        """Let go of the memory of pauses that have lasted too long."""
        over, given_up = self.pauses.over(now)
        for session in over:
            self.let_go(session)
        for session in given_up:
            self._born.pop(session, None)

    def displace(self, ask: Ask, now: float) -> bool:
        """The live sessions of a replica have outgrown it, and this one is back there: let go of
        the pause that is least likely to end soon, or of the youngest, if it is younger. Whose
        memory is taken waits in the queue when it is back: one session recomputes its context,
        instead of all of them in turn."""
        home = self._homes.get(ask.session)
        if home is None:
            return False
        victim, least = None, (inf, 0)
        for session in sorted(home.paused):
            pause = self.pauses.get(session)
            if pause is None or pause.told:
                continue
            rate = self.returns.rate(pause.kind, now - pause.since)
            rank = (min(rate, _SOON_RATE), -self._born.get(session, 0))
            if rank < least:
                victim, least = session, rank
        if victim is None or (
            least[0] >= _SOON_RATE and -least[1] <= self._born.get(ask.session, 0)
        ):
            return False
        self._give_up(victim)
        return True

    def make_room(self, open_to: Sequence[Outlook], now: float, waiting: int) -> bool:
        """Let go of pauses that are not worth what they keep others waiting; whether any was.

        Holding is worth the chance of a return in the next moment times the prefill that it saves;
        it costs the others the share of the memory that it takes. Both grow with its tokens, so
        what is compared is the rate of return and how often a second the replica can refill its
        whole memory, if somebody waits there. NOTE: a longer queue does not make it worth less:
        letting go of more, the longer it gets, would end in recomputing everything.
        """
        found = False
        for outlook in open_to:
            total = outlook.total_tokens
            if total is None or not outlook.paused:
                continue
            refills = 1.0 / (max(outlook.rates.slope_s, 1e-9) * total)
            pressure = refills * min(1.0, waiting / len(open_to))
            for session in self.pauses.poorest(outlook.id, pressure, now):
                self._give_up(session)
                found = True
        return found

    def let_go(self, session: str) -> None:
        """Nothing is held for the session any longer; that it may be back is still known."""
        self.pauses.let_go(session)
        outlook = self._homes.pop(session, None)
        if outlook is not None:
            self._release(session, outlook)

    def _give_up(self, session: str) -> None:
        """Let go of it, and tell the other routers."""
        self.let_go(session)
        if self.peers:
            self.news.append(News("idle", session))

    def _release(self, session: str, outlook: Outlook) -> None:
        outlook.paused.discard(session)
        outlook.holdings.release(session)
        self.released.append((session, outlook.id))

    # -- the other routers

    def let_go_unless_running(self, session: str) -> None:
        """Nothing is held for the session at another router, which it was at."""
        home = self._homes.get(session)
        if home is not None and not home.has(session):
            self.let_go(session)

    def lose(self, router: str) -> None:
        """Another router is gone: its turns, whose end it will not tell, are over."""
        for session in self.pauses.at(router):
            self.pauses.drop(session)
            self.let_go_unless_running(session)
