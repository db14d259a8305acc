"""What the Kubernetes API says of pods, read: which of them are replicas, and which are leaving."""

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from sessile.discovery.named import url_of
from sessile.router.discovery import Listed
from sessile.router.replica import ReplicaSpec


class ContainerPort(msgspec.Struct, frozen=True, rename="camel"):
    """A port that a container names."""

    container_port: int
    name: str = ""


class Container(msgspec.Struct, frozen=True):
    """One of a pod."""

    ports: list[ContainerPort] = []


class PodSpec(msgspec.Struct, frozen=True):
    """What was asked for."""

    containers: list[Container] = []


class Condition(msgspec.Struct, frozen=True):
    """One of a pod: Ready is the one that counts."""

    type: str
    status: str


class PodStatus(msgspec.Struct, frozen=True, rename="camel"):
    """How it is."""

    phase: str = ""
    pod_ip: str | None = msgspec.field(default=None, name="podIP")
    conditions: list[Condition] = []


class Metadata(msgspec.Struct, frozen=True, rename="camel"):
    """Of a pod, or of a list."""

    name: str = ""
    resource_version: str = ""
    deletion_timestamp: str | None = None


class Pod(msgspec.Struct, frozen=True):
    """As far as it is of use here."""

    metadata: Metadata
    spec: PodSpec = PodSpec()
    status: PodStatus = PodStatus()


class PodList(msgspec.Struct, frozen=True):
    """The answer to a list; a watch goes on from its `resource_version`."""

    metadata: Metadata
    items: list[Pod] = []


class WatchEvent(msgspec.Struct, frozen=True):
    """One line of a watch; `object` is a pod, or a status if `type` is ERROR."""

    type: str
    object: dict[str, Any]


def listed(
    pods: Iterable[Pod], port: str | None, engine: str, model: str | None
) -> tuple[Listed, ...]:
    """The pods that are replicas: those that run and have an address. One that is terminating, or
    not ready, is leaving: it is given nothing new, and if it was never ready, it does not come."""
    found = []
    for pod in sorted(pods, key=lambda pod: pod.metadata.name):
        status = pod.status
        number = _port(pod, port)
        if status.phase != "Running" or not status.pod_ip or number is None:
            continue
        url = url_of(status.pod_ip, number)
        spec = ReplicaSpec(id=pod.metadata.name, engine=engine, url=url, model=model)
        ready = any(c.type == "Ready" and c.status == "True" for c in status.conditions)
        found.append(Listed(spec, not ready or pod.metadata.deletion_timestamp is not None))
    return tuple(found)


def after(pods: Mapping[str, Pod], kind: str, pod: Pod) -> dict[str, Pod]:
    """The pods after one event of a watch."""
    left = {name: each for name, each in pods.items() if name != pod.metadata.name}
    return left if kind == "DELETED" else {**left, pod.metadata.name: pod}


def _port(pod: Pod, asked: str | None) -> int | None:
    """The port by number or name, or the first that the pod names; None if it names no such."""
    if asked is not None and asked.isdigit():
        return int(asked)
    for container in pod.spec.containers:
        for port in container.ports:
            if asked is None or port.name == asked:
                return port.container_port
    return None
