"""A drain of a real replica under load: its sessions' KV memory goes with them."""

import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2


class Agent:
    """A session that grows by each turn."""

    def __init__(self, url: str, number: int) -> None:
        self._http = httpx2.Client(base_url=url, timeout=120, trust_env=False)
        self._session = {"x-session-id": f"drained {number}"}
        task = " ".join(f"Step {step} of agent {number}: read the file." for step in range(30))
        self._messages = [{"role": "system", "content": task}]

    def turn(self) -> dict[str, Any]:
        """Its receipt."""
        self._messages.append({"role": "user", "content": "go on"})
        body = {"model": "smollm2-135m", "messages": self._messages, "max_tokens": 8}
        reply = self._http.post("/v1/chat/completions", json=body, headers=self._session)
        assert reply.status_code == 200, reply.text
        self._messages.append(reply.json()["choices"][0]["message"])
        return self.get(f"/sessile/v1/turns/{reply.headers['x-sessile-turn']}/receipt")

    def get(self, path: str) -> dict[str, Any]:
        """What the router tells."""
        found: dict[str, Any] = self._http.get(path).json()
        return found

    def has_settled(self, drained: str) -> bool:
        """Whether no session is at the replica any more, and none is being moved."""
        replicas = self.get("/sessile/v1/replicas")["replicas"]
        left = next(replica["sessions"] for replica in replicas if replica["id"] == drained)
        return not left and not any(replica["in_flight"] for replica in replicas)


def test_a_drain_under_load_fails_nothing_and_its_sessions_are_hits_elsewhere(
    sessile_up: str,
) -> None:
    """Turns that run there end there; the next turn of each session finds its cache at the other
    replica, where it was restored while the session paused."""
    agents = [Agent(sessile_up, number) for number in range(6)]
    with ThreadPoolExecutor(6) as threads, httpx2.Client(base_url=sessile_up) as admin:
        homes = [receipt["replica"] for receipt in threads.map(Agent.turn, agents)]
        drained = max(set(homes), key=homes.count)
        running = [threads.submit(agent.turn) for agent in agents[:3]]
        admin.post(f"/sessile/v1/replicas/{drained}/drain").raise_for_status()
        try:
            for turn in running:
                assert turn.result()["outcome"] == "ok"
            while not agents[0].has_settled(drained):
                time.sleep(0.1)
            receipts = list(threads.map(Agent.turn, agents))
        finally:
            admin.post(f"/sessile/v1/replicas/{drained}/resume").raise_for_status()
    assert drained not in {receipt["replica"] for receipt in receipts}
    assert "moved" in {receipt["reason"] for receipt in receipts}
    for receipt in receipts:
        assert receipt["cached_tokens"] >= 0.8 * receipt["prompt_tokens"], receipt
