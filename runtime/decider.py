"""Which replica a turn or a session goes to: by price, or by the rule of a policy that has none.

The deciding itself is `router.scheduler`'s and `router.decide`'s; here is which of them is asked,
and about which replicas. Whatever decides, the scheduler books it.
"""

import time
from collections.abc import Collection

import msgspec

from sessile.errors import NotSupported
from sessile.router.decide import Decision, decide
from sessile.router.needs import SAID, needs
from sessile.router.outlook import Outlook
from sessile.router.policy import Ask, Candidate, Policy
from sessile.router.pool import Pool
from sessile.router.scheduler import Scheduler
from sessile.turn import Turn


class Decider:
    """Made by `Placement`, one a router; `prices` says that the policy is the scheduler's own."""

    def __init__(
        self, pool: Pool, scheduler: Scheduler, policy: Policy, *, gate_slack: int
    ) -> None:
        self._pool = pool
        self._scheduler = scheduler
        self._policy = policy
        self._gate_slack = gate_slack
        self.prices = policy.name == "session"

    def decide(self, turn: Turn, ask: Ask, failed: tuple[str, ...] = ()) -> Decision | None:
        """By price or by rule, and booked; None: the turn waits in the queue."""
        now = time.monotonic()
        turn.ask = ask
        outlooks = self.outlooks(turn)
        if self.prices and ask.shared:
            return self._scheduler.submit(ask, outlooks, now, failed)
        decision = decide(
            ask, self._candidates(turn), self._policy, gate_slack=self._gate_slack, failed=failed
        )
        if ask.claimed is not None and decision.reason == "bound":
            decision = msgspec.structs.replace(decision, reason=ask.claimed)
        self._scheduler.book(ask, decision, outlooks, now)
        return decision

    def propose(self, turn: Turn, ask: Ask) -> Decision:
        """Where the session would go now; by price, a new one counts there from now on."""
        if self.prices:
            return self._scheduler.propose(ask, self.outlooks(turn), time.monotonic())
        return decide(ask, self._candidates(turn), self._policy, gate_slack=self._gate_slack)

    def elsewhere(self, ask: Ask, free: Collection[str]) -> Decision | None:
        """Which of the replicas in `free` a session that pauses should go on at; None: it is well
        where it is, or fits nowhere."""
        assert ask.bound is not None
        open_to = {*free, ask.bound.replica}
        outlooks = [o for o in self._pool.outlooks(ask.model) if o.id in open_to]
        if ask.base is not None:  # nothing is loaded for who only may come back
            outlooks = [o for o in outlooks if ask.model in o.shelf.loaded]
        if not outlooks:
            return None
        if self.prices:
            decision = self._scheduler.decide(ask, outlooks, time.monotonic())
        else:
            candidates = [c for c in self._pool.candidates(ask.model) if c.id in open_to]
            decision = decide(ask, candidates, self._policy, gate_slack=self._gate_slack)
        return decision if decision is not None and decision.binding == "rebind" else None

    def outlooks(self, turn: Turn) -> list[Outlook]:
        """The replicas that may take the turn, for the scheduler."""
        outlooks = self._pool.outlooks(turn.key.model)
        if turn.request.path == "/v1/embeddings" and outlooks:
            outlooks = [o for o in outlooks if self._pool.get(o.id).engine.embeddings]
            if not outlooks:
                raise NotSupported(f"the engine that serves {turn.key.model!r} makes no embeddings")
        return self._able(turn, outlooks)

    def _able(self, turn: Turn, outlooks: list[Outlook]) -> list[Outlook]:
        """Those whose model has what the turn needs. Most lack nothing, and cost no look at it."""
        if not any(outlook.lacks for outlook in outlooks):
            return outlooks
        needed = needs(turn.request.document)
        able = [outlook for outlook in outlooks if not needed & outlook.lacks]
        if not able:
            first = min(needed & outlooks[0].lacks)
            raise NotSupported(f"the model {turn.key.model!r} {SAID[first]}", param="model")
        return able

    def _candidates(self, turn: Turn) -> list[Candidate]:
        """The same, for the rules."""
        able = {outlook.id for outlook in self.outlooks(turn)}
        return [c for c in self._pool.candidates(turn.key.model) if c.id in able]
