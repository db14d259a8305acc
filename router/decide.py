"""The decision of a policy that prices nothing: which replica takes this turn, why, and what its
binding becomes. Pure.

The binding is a strong preference, not a chain. `router.scheduler` decides by price.
"""

from collections.abc import Collection, Sequence
from typing import Literal

import msgspec

from sessile.errors import NoReplica
from sessile.router.policy import Ask, Candidate, Policy, least_loaded


class Decision(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Where a turn goes. `binding` says what must be written for it:

    keep     it is bound there already (or the policy binds nothing)
    claim    the session is bound nowhere: bind it here
    rebind   it is bound elsewhere, or to an older incarnation: move it here
    """

    replica: str
    incarnation: str
    reason: str
    binding: Literal["keep", "claim", "rebind"]
    predicted_cached_tokens: int | None
    predicted_ttft_s: float | None = None


def decide(
    ask: Ask,
    candidates: Sequence[Candidate],
    policy: Policy,
    *,
    gate_slack: int,
    failed: Collection[str] = (),
) -> Decision:
    """Decide for one turn. The cases, in order:

    1. nobody is left: `NoReplica`
    2. the policy binds nothing: its choice
    3. bound, and the replica is a candidate of the same incarnation, and not overloaded: stay
    4. bound, but the replica failed this turn, left, drains, restarted or is overloaded: the
       policy chooses among the others (for a restart, among all), and the session is re-bound
    5. bound nowhere: the policy chooses, and the session is bound

    `failed` are replicas that this very turn has tried. A replica is overloaded when
    `gate_slack` or more turns wait there for a slot while another has none waiting.
    """
    open_to = [c for c in candidates if c.id not in failed] if failed else candidates
    if not open_to:
        raise nobody(failed)
    if not policy.binds:
        chosen, reason = policy.choose(ask, open_to)
        return _decision(chosen, "failover" if failed else reason, "keep", None)
    bound = ask.bound
    if bound is None:
        chosen, reason = policy.choose(ask, open_to)
        return _decision(chosen, "failover" if failed else reason, "claim", 0)
    home = next((c for c in open_to if c.id == bound.replica), None)
    if home is None:
        chosen = least_loaded(ask, open_to)
        return _decision(chosen, "failover" if failed else "replica_gone", "rebind", 0)
    if home.incarnation != bound.incarnation:
        chosen, _ = policy.choose(ask, open_to)
        return _decision(chosen, "restarted", "rebind", 0)
    if home.queued >= max(gate_slack, 1):
        lightest = least_loaded(ask, open_to)
        if not lightest.queued and lightest.id != home.id:
            return _decision(lightest, "overloaded", "rebind", 0)
    return _decision(home, "bound", "keep", ask.context_tokens)


def nobody(failed: Collection[str]) -> NoReplica:
    """The error for a turn that no replica is left for."""
    return NoReplica(
        "every replica of this model failed the turn"
        if failed
        else "no replica of this model is ready; see /sessile/v1/replicas",
        retry_after_s=2.0,
    )


def _decision(
    chosen: Candidate,
    reason: str,
    binding: Literal["keep", "claim", "rebind"],
    predicted: int | None,
) -> Decision:
    return Decision(
        replica=chosen.id,
        incarnation=chosen.incarnation,
        reason=reason,
        binding=binding,
        predicted_cached_tokens=predicted,
    )
