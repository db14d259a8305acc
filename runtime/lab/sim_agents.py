"""The clients of the simulator: each agent sends its turns one after another, waits for its tools
and for what it has spawned, and sends a turn again that came to nothing.
"""

from collections.abc import Callable
from typing import Protocol

import msgspec

from sessile.lab.sim_engine import Request
from sessile.lab.sim_load import SimSession, SimTurn
from sessile.lab.sim_routers import SimRouter
from sessile.router.policy import Ask
from sessile.sessions.record import Binding


class Process(msgspec.Struct, eq=False):
    """One router's process: dead for good once it is killed. `known` are the bindings that it has
    seen, which it goes by while the store is away."""

    router: SimRouter
    known: dict[str, Binding] = {}
    alive: bool = True
    looking: bool = False


class Turn(msgspec.Struct, eq=False):
    """One turn under way, from when its agent first asked; it may be sent several times."""

    agent: "Agent"
    made: SimTurn
    asked_at: float
    ask: Ask | None = None
    process: Process | None = None
    request: Request | None = None
    replica: str | None = None
    sent_at: float = 0.0
    predicted_s: float | None = None
    answered: bool = False


class Place(Protocol):
    """What an agent needs of its world."""

    now: float

    def at(self, when: float, event: Callable[[], None]) -> None: ...

    def ask(self, turn: Turn) -> None: ...

    def over(self, session: SimSession, seconds: float) -> None:
        """A session is over, so long after its start."""


class Agent:
    """One session."""

    def __init__(self, world: Place, session: SimSession, parent: "Agent | None" = None) -> None:
        self.session = session
        self._world = world
        self._parent = parent
        self._next = 0
        self._children = 0
        self._began_at = 0.0

    def start(self) -> None:
        """Send the first turn."""
        self._began_at = self._world.now
        self._ask()

    def next_tool(self) -> str | None:
        """What it does after the turn under way, as its calls tell. NOTE: that it has come to its
        end it does not tell."""
        turns = self.session.turns
        return turns[self._next + 1].tool if self._next + 1 < len(turns) else ""

    def answered(self) -> None:
        """The turn under way has ended."""
        turn = self.session.turns[self._next]
        self._next += 1
        self._children = len(turn.spawns)
        for child in turn.spawns:
            self._world.at(self._world.now, Agent(self._world, child, self).start)
        if not self._children:
            self._go_on()

    def _ask(self) -> None:
        world = self._world
        world.ask(Turn(self, self.session.turns[self._next], world.now))

    def _go_on(self) -> None:
        world = self._world
        if self._next < len(self.session.turns):
            world.at(world.now + self.session.turns[self._next].gap_s, self._ask)
            return
        world.over(self.session, world.now - self._began_at)
        if self._parent is not None:
            self._parent._child_ended()

    def _child_ended(self) -> None:
        self._children -= 1
        if not self._children:
            self._go_on()
