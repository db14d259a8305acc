"""A drain of a real replica under load: its sessions' KV memory goes with them."""

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import httpx2


class Served(NamedTuple):
    """Where a turn ran, why there, and how much of its prompt was cached."""

    replica: str
    reason: str
    hit_rate: float


class Agent:
    """A session that grows by each turn."""

    def __init__(self, http: httpx2.Client, number: int) -> None:
        self._http = http
        self.name = f"drained-{number}"
        self._session = {"x-session-id": self.name}
        task = " ".join(f"Step {step} of agent {number}: read the file." for step in range(30))
        self._messages = [{"role": "system", "content": task}]

    def turn(self) -> Served:
        """Its next turn, which must succeed."""
        self._messages.append({"role": "user", "content": "go on"})
        body = {"model": "smollm2-135m", "messages": self._messages, "max_tokens": 8}
        reply = self._http.post("/v1/chat/completions", json=body, headers=self._session)
        assert reply.status_code == 200, reply.text
        told = reply.json()
        self._messages.append(told["choices"][0]["message"])
        cached = told["usage"]["prompt_tokens_details"]["cached_tokens"]
        return Served(
            reply.headers["x-sessile-replica"],
            reply.headers["x-sessile-reason"],
            cached / told["usage"]["prompt_tokens"],
        )


def has_settled(http: httpx2.Client, drained: str, agents: Sequence[Agent]) -> bool:
    """Whether none of the sessions is at the replica any more, and none is being moved."""
    replicas = http.get("/sessile/v1/replicas").json()["replicas"]
    homes = {http.get(f"/sessile/v1/sessions/{agent.name}").json()["replica"] for agent in agents}
    return drained not in homes and not any(replica["in_flight"] for replica in replicas)


def test_a_drain_under_load_fails_nothing_and_its_sessions_are_hits_elsewhere(
    sessile_up: str,
) -> None:
    """Turns that run there end there; the next turn of each session finds its cache at the other
    replica, where it was restored while the session paused."""
    with (
        ThreadPoolExecutor(6) as threads,
        httpx2.Client(base_url=sessile_up, timeout=120, trust_env=False) as http,
    ):
        agents = [Agent(http, number) for number in range(6)]
        homes = [served.replica for served in threads.map(Agent.turn, agents)]
        drained = max(set(homes), key=homes.count)
        paused = agents[homes.index(drained)]  # those that run may move by their own turn
        others = [agent for agent in agents if agent is not paused]
        running = [threads.submit(agent.turn) for agent in others[:3]]
        http.post(f"/sessile/v1/replicas/{drained}/drain").raise_for_status()
        try:
            for turn in running:
                turn.result()
            while not has_settled(http, drained, agents):
                time.sleep(0.1)
            after = list(threads.map(Agent.turn, agents))
        finally:
            http.post(f"/sessile/v1/replicas/{drained}/resume").raise_for_status()
    assert drained not in {served.replica for served in after}
    assert "moved" in {served.reason for served in after}
    assert min(served.hit_rate for served in after) >= 0.8, after
