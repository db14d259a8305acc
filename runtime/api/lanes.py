"""The lanes of one WebSocket: what waits in which, and which conversations run side by side. Pure.

A lane is a `stream_id`, or the absence of one. It is there while it has something to do: what is
bounded is the lanes that work at once, what waits in each, and the bytes of all that wait.
"""

from collections import OrderedDict, deque
from collections.abc import Sequence
from typing import Any

import msgspec

from sessile.api.steering import Steer
from sessile.errors import Overloaded
from sessile.sessions.store import OnceKey

MOST_WAITING = 16
_MOST_KNOWN = 4_096

Lane = str | None


class Job(msgspec.Struct, frozen=True):
    """A response to make: the `response.create` that asks for it and its size as text. `steers`
    are those that it was made for, if it follows a steered response by itself; `once` is the key
    under which it is made once, however often it is asked for. One that `detaches` is made to its
    end though its client goes. `made` is the response where the
    router makes it by itself, and the lane is only told of it."""

    frame: dict[str, Any]
    size: int = 0
    steers: Sequence[Steer] = ()
    once: OnceKey | None = None
    detaches: bool = False
    made: str | None = None


class Lanes:
    """One connection's. First come, first served in each lane; the lanes know nothing of each
    other."""

    def __init__(self, most_lanes: int, most_bytes: int) -> None:
        self._most_lanes = most_lanes
        self._most_bytes = most_bytes
        self._waiting: dict[Lane, deque[Job]] = {}
        self._bytes = 0

    def __len__(self) -> int:
        """How many lanes work now."""
        return len(self._waiting)

    def put(self, lane: Lane, job: Job) -> bool:
        """Whether the job may begin at once, which opens the lane; else it waits there.

        Raises `Overloaded` where there is no room for one more.
        """
        waiting = self._waiting.get(lane)
        if waiting is None:
            if len(self._waiting) >= self._most_lanes:
                raise Overloaded(
                    f"{len(self._waiting)} lanes of this connection are at work already",
                    param="stream_id", retry_after_s=1.0,
                )  # fmt: skip
            self._waiting[lane] = deque()
            return True
        if len(waiting) >= MOST_WAITING or (
            self._bytes and self._bytes + job.size > self._most_bytes
        ):
            raise Overloaded(
                f"{len(waiting)} requests wait in this lane already", retry_after_s=1.0
            )
        waiting.append(job)
        self._bytes += job.size
        return False

    def next(self, lane: Lane) -> Job | None:
        """What is to be done next in an open lane; None closes it."""
        waiting = self._waiting[lane]
        if not waiting:
            del self._waiting[lane]
            return None
        job = waiting.popleft()
        self._bytes -= job.size
        return job

    def drop(self) -> list[tuple[Lane, Job]]:
        """Forget all that waits; the lanes stay open until they are asked for more."""
        dropped = [(lane, job) for lane, waiting in self._waiting.items() for job in waiting]
        for waiting in self._waiting.values():
            waiting.clear()
        self._bytes = 0
        return dropped


class Branch(msgspec.Struct):
    """A turn under way: the session it goes on with, as far as that is known, and whether it is to
    be a session of its own since another lane runs that one now."""

    parent: str | None
    session: str | None
    forks: bool


class Branches:
    """Which sessions the lanes of one connection run. Two lanes may go on from one response: the
    second is a fork, or it would wait for the first."""

    def __init__(self) -> None:
        self._sessions: OrderedDict[str, str] = OrderedDict()  # of the newest responses
        self._running: list[Branch] = []

    def begin(self, parent: str | None, *, locks: bool = True) -> Branch:
        """A turn that follows `parent` begins. One that does not lock its session (it prepares it
        only) is in nobody's way."""
        session = None if parent is None else self._sessions.get(parent, parent)
        taken = locks and session is not None and any(r.session == session for r in self._running)
        branch = Branch(parent, None if taken else session, taken)
        if locks:
            self._running.append(branch)
        return branch

    def opened(self, branch: Branch, response: str, session: str) -> None:
        """Now its session is known, and the response that later turns may follow."""
        branch.session = session
        if branch.parent is not None and not branch.forks:
            self._note(branch.parent, session)
        self._note(response, session)

    def end(self, branch: Branch) -> None:
        """The turn is over."""
        self._running = [running for running in self._running if running is not branch]

    def _note(self, response: str, session: str) -> None:
        self._sessions[response] = session
        self._sessions.move_to_end(response)
        if len(self._sessions) > _MOST_KNOWN:
            self._sessions.popitem(last=False)
