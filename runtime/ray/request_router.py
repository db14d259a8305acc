"""Sessile's session rule as a request router of Ray Serve, for those who serve with Ray Serve LLM.

    from ray.serve.config import RequestRouterConfig
    RequestRouterConfig(
        request_router_class="sessile.ray.request_router.SessionRouter",
        request_router_kwargs={"slack": 8},
    )

A session's requests go where its last one went; a new session goes to its home by rendezvous
hashing, on which all proxies agree without a word. Where that replica has more than `slack`
requests over the least, and for requests without a session, two at random are asked, as Ray Serve
does by itself. What is cached is not looked at: `sessile serve` before the replicas does that.
"""

import random
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ray.serve.request_router import PendingRequest, RequestRouter, RunningReplica

from sessile.errors import InvalidRequest
from sessile.router.policy import Candidate, rendezvous
from sessile.sessions.identity import read_claims

_MOST_SESSIONS = 100_000
_MOST_SESSION = 256


class SessionRouter(RequestRouter):  # type: ignore[misc]
    """One in each handle and proxy, made by Ray Serve. Remembers the newest 100,000 sessions.

    NOTE: not first come, first served: there the replica that was chosen for one request takes
    whichever has waited longest.
    """

    def initialize_state(self, slack: int = 8) -> None:
        """The keywords of `request_router_kwargs`."""
        self._slack = slack
        self._last: OrderedDict[str, Any] = OrderedDict()  # where each session's last request went

    async def choose_replicas(
        self,
        candidate_replicas: list[RunningReplica],
        pending_request: PendingRequest | None = None,
    ) -> list[list[RunningReplica]]:
        """The session's replica, then two others: Ray Serve takes the first that has room."""
        session = session_of(pending_request) if pending_request is not None else None
        if session is None or not candidate_replicas:
            return [_two(candidate_replicas)] if candidate_replicas else []
        home = self._home(session, candidate_replicas)
        others = [each for each in candidate_replicas if each is not home]
        ranks = [[home], *([_two(others)] if others else [])]
        return ranks[::-1] if self._is_crowded(home, others) else ranks

    def on_request_routed(
        self, pending_request: PendingRequest, replica_id: Any, result: Any
    ) -> None:
        """The session is there from now on."""
        session = session_of(pending_request)
        if session is not None:
            self._last[session] = replica_id
            self._last.move_to_end(session)
            if len(self._last) > _MOST_SESSIONS:
                self._last.popitem(last=False)

    def _home(self, session: str, replicas: Sequence[RunningReplica]) -> RunningReplica:
        last = self._last.get(session)
        found = next((each for each in replicas if each.replica_id == last), None)
        if found is not None:
            return found
        by_name = {each.replica_id.unique_id: each for each in replicas}
        return by_name[home_of(session, by_name)]

    def _is_crowded(self, home: RunningReplica, others: Iterable[RunningReplica]) -> bool:
        """Whether it is far more loaded than another, as far as that is known here."""
        known = self.replica_queue_len_cache
        here = known.get(home.replica_id)
        there = [n for each in others if (n := known.get(each.replica_id)) is not None]
        return here is not None and bool(there) and here > min(there) + self._slack


def home_of(session: str, names: Iterable[str]) -> str:
    """Where a session that nobody has seen goes."""
    return rendezvous(session, [Candidate(name, "") for name in names]).id


def session_of(request: PendingRequest) -> str | None:
    """The session that a request names, in any of the ways that Sessile knows; else the group that
    it asks to be kept with. None where it names neither, or not in a way that can be read: that is
    the replica's to refuse."""
    told = request.metadata.session_id
    if told:
        return str(told)[:_MOST_SESSION]
    headers: list[tuple[bytes, bytes]] = []
    body: dict[str, Any] = {}
    for part in (*request.args, *request.kwargs.values()):
        found = getattr(part, "headers", None)
        if isinstance(found, Mapping):
            headers += [(str(k).lower().encode(), str(v).encode()) for k, v in found.items()]
        elif isinstance(part, Mapping):
            body |= part
        elif hasattr(part, "model_dump"):  # of Ray Serve LLM, whose requests keep unknown fields
            body |= {name: getattr(part, name, None) for name in _FIELDS}
    try:
        claims = read_claims(headers, body)
    except InvalidRequest:
        return None
    return claims.explicit or claims.group


_FIELDS = ("session_id", "metadata", "prompt_cache_key", "user", "safety_identifier")


def _two(replicas: Sequence[RunningReplica]) -> list[RunningReplica]:
    return random.sample(replicas, min(2, len(replicas)))
