"""A Ray cluster on this machine, for the bench and the tests: small, without a dashboard, gone when
the block ends."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import ray
from ray import serve
from ray.cluster_utils import Cluster

from sessile.engines.supervisor import free_ports
from sessile.ray.app import build
from sessile.ray.arguments import RayArguments

_OBJECT_STORE_BYTES = 80 * 2**20  # nothing passes through it


class LocalRay:
    """The cluster. `replicas_of_head` engine replicas of one CPU fit on its first node."""

    def __init__(self, replicas_of_head: int) -> None:
        # NOTE: a machine of any size: what Ray takes for CPUs is only how many replicas fit.
        self._cluster = Cluster(
            initialize_head=True,
            head_node_args={"num_cpus": replicas_of_head, **SMALL},
        )
        (self._port,) = free_ports(1)
        ray.init(self._cluster.address, log_to_driver=False, configure_logging=False)
        serve.start(http_options={"host": "127.0.0.1", "port": self._port})

    def deploy(self, name: str, arguments: Mapping[str, Any]) -> str:
        """Deploy an application, or a new version of it; returns where routers find it."""
        serve.run(build(RayArguments(**arguments)), name=name, route_prefix=f"/{name}")
        return f"ray://127.0.0.1:{self._port}/{name}"

    def delete(self, name: str) -> None:
        """Take an application away; its replicas drain."""
        serve.delete(name)

    def add_node(self, replicas: int) -> Any:
        """Another node, where so many replicas fit."""
        return self._cluster.add_node(num_cpus=replicas, **SMALL)

    def lose_node(self, node: Any) -> None:
        """All of its processes are killed."""
        self._cluster.remove_node(node, allow_graceful=False)

    def aclose(self) -> None:
        """End everything."""
        serve.shutdown()
        ray.shutdown()
        self._cluster.shutdown()


SMALL = {"object_store_memory": _OBJECT_STORE_BYTES, "include_dashboard": False}


@contextmanager
def local_ray(replicas_of_head: int) -> Iterator[LocalRay]:
    """A cluster until the block ends."""
    cluster = LocalRay(replicas_of_head)
    try:
        yield cluster
    finally:
        cluster.aclose()
