"""Pods that come and go under load, as processes of their own, before a real router process: as a
kubelet does it, a pod that is to end serves on for a while and is then killed."""

import asyncio
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import httpx2
import pytest

from sessile.engines.guard import guarded
from sessile.engines.supervisor import free_ports
from sessile.lab.fake_kubernetes import FakeKubernetes

REPLICAS = "/sessile/v1/replicas"
_LAST_S = 30.0


class Cluster:
    """Pods that are processes, and the API that tells of them."""

    def __init__(self, api: FakeKubernetes) -> None:
        self.api = api
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str) -> None:
        """A pod runs and is ready; the router is told before it answers, as can be."""
        (port,) = free_ports(1)
        command = [sys.executable, "-m", "sessile.lab.mock_replica", str(port), "0.02"]
        self._processes[name] = subprocess.Popen(guarded(command))
        self.api.run(name, port)

    async def end(self, name: str, http: httpx2.AsyncClient) -> None:
        """The pod terminates, is killed after a grace period in which the router has drained it,
        and is no more."""
        self.api.terminate(name)
        await until(http, REPLICAS, lambda told: idle(told, name))
        self.kill(name)
        self.api.remove(name)

    def kill(self, name: str) -> None:
        """End its process."""
        process = self._processes.pop(name)
        process.kill()
        process.wait()

    def kill_all(self) -> None:
        """End every process."""
        for name in list(self._processes):
            self.kill(name)


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """One without pods."""
    cluster = Cluster(FakeKubernetes())
    yield cluster
    cluster.kill_all()


class Load:
    """Sessions that take turn after turn; `failed` is what must stay empty."""

    def __init__(self, http: httpx2.AsyncClient) -> None:
        self._http = http
        self.ends = False
        self.failed: list[str] = []
        self.served: Counter[str] = Counter()

    async def session(self, name: str) -> None:
        """One of them, until the load ends."""
        messages = [{"role": "user", "content": name}]
        while not self.ends:
            body = {"model": "mock", "messages": messages, "stream": True, "max_tokens": 12}
            headers = {"x-session-id": name}
            reply = await self._http.post("/v1/chat/completions", json=body, headers=headers)
            if reply.status_code != 200 or "[DONE]" not in reply.text or "error" in reply.text:
                self.failed.append(f"{reply.status_code} {reply.text[-200:]}")
            else:
                self.served[reply.headers["x-sessile-replica"]] += 1
            await asyncio.sleep(0.1)

    async def until_served(self, name: str) -> None:
        """Wait for turns that the replica serves from now on."""
        before = self.served[name]
        async with asyncio.timeout(_LAST_S):
            print(
                name,
                dict(self.served),
                self.failed[:2],
                (await self._http.get(REPLICAS)).json()["replicas"],
            )
            while self.served[name] < before + 3:  # noqa: ASYNC110 - counted by other tasks
                await asyncio.sleep(0.02)


async def until(
    http: httpx2.AsyncClient, path: str, true: Callable[[dict[str, Any]], bool]
) -> None:
    """Wait until what the router tells there is so."""
    async with asyncio.timeout(_LAST_S):
        while not true((await http.get(path)).json()):  # noqa: ASYNC110 - told by HTTP only
            await asyncio.sleep(0.05)


def idle(told: dict[str, Any], name: str) -> bool:
    """Whether the replica drains, and nothing runs there any more."""
    return any(
        each["id"] == name and each["state"] == "draining" and not each["in_flight"]
        for each in told["replicas"]
    )


def states(told: dict[str, Any]) -> dict[str, str]:
    """Each replica's state."""
    return {each["id"]: each["state"] for each in told["replicas"]}


@pytest.mark.timeout(300)
async def test_pods_come_and_go_under_load_and_no_turn_fails(
    cluster: Cluster,
    serve: Callable[..., AbstractContextManager[str]],
    mortal: Callable[..., Any],
) -> None:
    """A new pod takes traffic; one that is deleted with live sessions is drained before it is
    killed; all of it while the API goes away and comes back."""
    cluster.start("engine-a")
    with serve(cluster.api) as api:
        where = f"openai=kubernetes://default?selector=app=engine&port=http&api={api}"
        router = mortal("--discover", where)
        await router.start()
        async with httpx2.AsyncClient(
            base_url=router.url, timeout=_LAST_S, trust_env=False
        ) as http:
            load = Load(http)
            async with asyncio.TaskGroup() as group:
                for number in range(4):
                    group.create_task(load.session(f"s{number}"))
                await load.until_served("engine-a")
                cluster.start("engine-b")
                await until(http, REPLICAS, lambda told: states(told).get("engine-b") == "ready")
                for number in range(4, 8):
                    group.create_task(load.session(f"s{number}"))
                await load.until_served("engine-b")
                await cluster.end("engine-a", http)
                gone = load.served["engine-a"]
                await load.until_served("engine-b")
                cluster.api.away = True
                await until(http, "/ready", lambda told: told["status"] == "degraded")
                await load.until_served("engine-b")
                cluster.start("engine-c")
                cluster.api.away = False
                await until(http, REPLICAS, lambda told: states(told).get("engine-c") == "ready")
                await cluster.end("engine-b", http)
                await load.until_served("engine-c")
                load.ends = True
            assert not load.failed
            assert load.served["engine-a"] == gone
            told = (await http.get(REPLICAS)).json()
            assert states(told) == {"engine-c": "ready"}
