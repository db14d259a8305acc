"""`sessile deploy ray` on a real cluster of this machine: `pytest -m ray`."""

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import httpx2
import pytest

pytest.importorskip("ray.serve", reason="needs sessile[ray]")

import ray
from ray.cluster_utils import Cluster

from sessile.engines.supervisor import free_ports
from sessile.lab.ray_bench import routed
from sessile.lab.ray_cluster import SMALL

pytestmark = [
    pytest.mark.ray,
    pytest.mark.timeout(300),
    pytest.mark.filterwarnings("default"),  # Ray's own
]


@contextmanager
def a_cluster() -> Iterator[str]:
    """The address of a cluster that knows itself by this machine's own address, as one of many
    machines would."""
    here = ray.util.get_node_ip_address()
    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 1, "node_ip_address": here, **SMALL}
    )
    try:
        yield cluster.address
    finally:
        cluster.shutdown()


async def deploy(*flags: str) -> subprocess.CompletedProcess[str]:
    """The command, once it has ended."""
    command = [sys.executable, "-m", "sessile.cli", "deploy", "ray", *flags]
    return await asyncio.to_thread(
        subprocess.run, command, capture_output=True, text=True, timeout=120
    )


async def test_routers_on_other_machines_find_what_listens_on_all_interfaces():
    """By the node's own address, which the command tells; a host that comes too late for Ray Serve
    is said to."""
    (port,) = free_ports(1)
    with a_cluster() as address:
        flags = ("--address", address, "--drain", "5", "--port", str(port))
        done = await deploy(*flags, "--host", "0.0.0.0")
        source = done.stderr.split()[-1]
        assert source == f"ray://{ray.util.get_node_ip_address()}:{port}/sessile", done.stderr
        async with routed(source) as url, httpx2.AsyncClient(base_url=url, trust_env=False) as http:
            body = {"model": "smollm2-135m", "max_tokens": 4,
                    "messages": [{"role": "user", "content": "hello"}]}  # fmt: skip
            answer = await http.post("/v1/chat/completions", json=body, timeout=60.0)
            assert answer.status_code == 200
        (other,) = free_ports(1)
        late = await deploy(*flags[:-1], str(other))
        assert late.returncode != 0
        assert "no proxy answers for it at 127.0.0.1" in " ".join(late.stderr.split())
