"""Replicas on a real Ray cluster of this machine, with the embedded engine: `pytest -m ray`."""

import asyncio
import os
import signal
import time
from collections.abc import Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx2
import pytest

pytest.importorskip("ray.serve", reason="needs sessile[ray]")

from ray import serve
from ray.serve.config import RequestRouterConfig

from sessile.engines.supervisor import free_ports
from sessile.lab.bench import replay
from sessile.lab.processes import child
from sessile.lab.ray_bench import Setup, arguments, measure, routed
from sessile.lab.ray_cluster import LocalRay, local_ray
from sessile.lab.workload import PlannedSession, PlannedTurn

pytestmark = [
    pytest.mark.ray,
    pytest.mark.timeout(900),  # the longest took 480 s on two cores with a load of 8
    pytest.mark.filterwarnings("default"),  # Ray's own
]

SMALL = {"context_tokens": 1024, "drain_s": 60.0, "ttft_s": 60.0}


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalRay]:
    with local_ray(replicas_of_head=3) as started:
        yield started


def agents(count: int, turns: int, think_s: float = 0.5) -> list[PlannedSession]:
    """Sessions of short turns, all at once."""
    found = []
    for number in range(count):
        messages = [{"role": "system", "content": f"You are agent {number}. " * 8}]
        planned = []
        for turn in range(turns):
            messages = [*messages, {"role": "user", "content": f"step {turn} of {number}"}]
            planned.append(PlannedTurn(messages, think_s if turn else 0.0))
            messages = [*messages, {"role": "assistant", "content": "done"}]
        found.append(PlannedSession(f"agent-{number}-{time.time_ns()}", 0.0, planned))
    return found


async def talk(url: str, sessions: list[PlannedSession]):
    return await replay(
        [url], "smollm2-135m", sessions, max_tokens=8, lineage=False, key=None, done=lambda: None
    )


async def states(http: httpx2.AsyncClient) -> dict[str, str]:
    """The router's replicas and their states."""
    listed = (await http.get("/sessile/v1/replicas")).json()["replicas"]
    return {each["id"]: each["state"] for each in listed}


async def until(http: httpx2.AsyncClient, holds, within_s: float = 120.0) -> dict[str, str]:
    """The states once `holds` is true of them."""
    async with asyncio.timeout(within_s):
        while True:
            found = await states(http)
            if holds(found):
                return found
            await asyncio.sleep(0.5)


@asynccontextmanager
async def router_at(source: str):
    async with routed(source) as url, httpx2.AsyncClient(base_url=url, trust_env=False) as http:
        yield url, http


async def test_replicas_follow_the_load_and_no_turn_fails(cluster: LocalRay, tmp_path: Path):
    """Many agents bring four replicas; when they have gone, all but one leave, while a session
    still speaks; every turn is served, and most of what was said before is still cached."""
    node = cluster.add_node(1)
    setup = Setup(most=4, busy_sessions=10, down_after_s=4.0, quiet_s=120.0)
    source = cluster.deploy("scaled", arguments(setup, str(tmp_path)))
    found = await measure(source, setup)
    cluster.delete("scaled")
    cluster.lose_node(node)
    counts = [count for _, count in found.path]
    assert found.report.errors == 0, found.report.first_error
    assert counts[0] == 1
    assert max(counts) == 4
    assert counts[-1] == 1
    assert found.scaled_hit_rate >= 0.7


async def test_a_new_version_replaces_the_replicas_while_sessions_run(cluster: LocalRay):
    """Ray Serve ends each old one only once the routers have nothing there; no turn fails."""
    wanted = {**SMALL, "min_replicas": 2, "max_replicas": 2, "surge_percent": 50}
    source = cluster.deploy("rolled", wanted)
    async with router_at(source) as (url, http):
        old = set(await until(http, lambda found: list(found.values()) == ["ready"] * 2))
        talking = asyncio.create_task(talk(url, agents(3, 12)))
        await asyncio.to_thread(cluster.deploy, "rolled", {**wanted, "slots": 3})
        samples = await talking
        await until(http, lambda found: list(found.values()) == ["ready"] * 2)
        new = set(await states(http))
    cluster.delete("rolled")
    assert [s.error for s in samples if s.error] == []
    assert not old & new


async def test_an_engine_that_is_killed_comes_back_and_no_turn_fails(cluster: LocalRay):
    """Its sessions go on at the other replica meanwhile."""
    source = cluster.deploy("killed", {**SMALL, "min_replicas": 2, "max_replicas": 2})
    async with router_at(source) as (url, http):
        await until(http, lambda found: list(found.values()) == ["ready"] * 2)
        talking = asyncio.create_task(talk(url, agents(3, 10)))
        await asyncio.sleep(3.0)
        listed = (await http.get("/sessile/v1/replicas")).json()["replicas"]
        port = max(listed, key=lambda each: each["sessions"])["url"].rpartition(":")[2]
        os.kill(engine_at(port), signal.SIGKILL)
        samples = await talking
        await until(http, lambda found: list(found.values()) == ["ready"] * 2)
    cluster.delete("killed")
    assert [s.error for s in samples if s.error] == []


async def test_a_lost_node_fails_no_turn_and_its_replicas_come_back_elsewhere(cluster: LocalRay):
    """All processes of the node are killed; another node takes its place."""
    node = cluster.add_node(1)
    source = cluster.deploy("lost", {**SMALL, "min_replicas": 4, "max_replicas": 4})
    async with router_at(source) as (url, http):
        before = await until(http, lambda found: list(found.values()) == ["ready"] * 4)
        talking = asyncio.create_task(talk(url, agents(4, 10)))
        await asyncio.sleep(3.0)
        await asyncio.to_thread(cluster.lose_node, node)
        samples = await talking
        await until(http, lambda found: len(found) == 3)
        other = cluster.add_node(1)  # Ray sets signal handlers, which threads cannot
        after = await until(http, lambda found: list(found.values()) == ["ready"] * 4)
    cluster.delete("lost")
    cluster.lose_node(other)
    assert [s.error for s in samples if s.error] == []
    assert len(set(before) & set(after)) == 3


async def test_none_are_there_until_somebody_asks(cluster: LocalRay):
    """At zero a turn is told to come back, and finds a replica when it does."""
    source = cluster.deploy("idle", {**SMALL, "min_replicas": 0, "zero_after_s": 5.0})
    (port,) = free_ports(1)
    url = f"http://127.0.0.1:{port}"
    command = ["-m", "sessile.cli", "serve", "--discover", f"llamacpp={source}", "--port",
               str(port)]  # fmt: skip
    async with (
        child(command, url, "/health", 60.0),
        httpx2.AsyncClient(base_url=url, trust_env=False, timeout=60.0) as http,
    ):
        await asyncio.sleep(3.0)
        body = {"model": "smollm2-135m", "max_tokens": 4,
                "messages": [{"role": "user", "content": "hello"}]}  # fmt: skip
        first = await http.post("/v1/chat/completions", json=body)
        assert first.status_code == 503
        assert first.headers["retry-after"]
        await until(http, lambda found: "ready" in found.values())
        assert (await http.post("/v1/chat/completions", json=body)).status_code == 200
        await until(http, lambda found: not found)
    cluster.delete("idle")


def test_the_request_router_keeps_sessions_at_their_replica(cluster: LocalRay):
    """Calls of a session reach one replica, by the body or by Ray Serve's own session id; those of
    many sessions reach both."""

    class Echo:
        def __call__(self, _: dict) -> str:
            return serve.get_replica_context().replica_id.unique_id

    router = RequestRouterConfig(request_router_class="sessile.ray.request_router.SessionRouter")
    deployment = serve.deployment(
        Echo, num_replicas=2, request_router_config=router, ray_actor_options={"num_cpus": 0}
    )
    handle = serve.run(deployment.bind(), name="echo", route_prefix="/echo")
    at = {
        name: {handle.remote({"session_id": name}).result() for _ in range(5)}
        for name in map(str, range(12))
    }
    told = {handle.options(session_id="told").remote({}).result() for _ in range(5)}
    serve.delete("echo")
    assert all(len(replicas) == 1 for replicas in (*at.values(), told))
    assert len(set.union(*at.values())) == 2


def engine_at(port: str) -> int:
    """The process of the embedded engine that listens there."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if b"sessile.engines.embedded" in words and port.encode() in words:
                return int(entry.name)
    raise AssertionError(f"no engine listens on {port}")
