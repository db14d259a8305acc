"""What a source of replicas lists, and what is to be done to the pool so that it holds just that.

A source (a file, DNS, Kubernetes, Ray) is anything that yields the whole set of its replicas each
time that it changes; how it learns of them is its own affair. The difference to what the pool holds
is taken anew each time, from what is and not from what was done before: a step that was missed, or
could not be taken yet, is found again.
"""

from collections.abc import AsyncIterator, Collection
from typing import NamedTuple, Protocol

import msgspec

from sessile.router.replica import ReplicaSpec, State


class Listed(msgspec.Struct, frozen=True):
    """A replica as its source lists it; `leaving` is one that is to finish what runs there and be
    given nothing new, since it is about to end or is not ready."""

    spec: ReplicaSpec
    leaving: bool = False


class Source(Protocol):
    """Where replicas are found. One task reads it, for as long as the router runs."""

    name: str
    """As the settings give it, and as the log and `/ready` tell of it."""

    def lists(self) -> AsyncIterator[Collection[Listed]]:
        """The whole set, at once and then each time that it may have changed, without end.

        Raises `DiscoveryFailed` where it cannot be read; it is called anew after a pause. The ids
        must be the same at every router, since sessions are bound by them.
        """
        ...


class Known(msgspec.Struct, frozen=True):
    """A replica of the source that the pool holds; `drained` says that it drains because of its
    source: what a person has drained is not put back into service."""

    spec: ReplicaSpec
    state: State
    in_flight: int
    drained: bool


class Change(NamedTuple):
    """What is to be done now, by replica; all of it may be empty."""

    add: tuple[ReplicaSpec, ...] = ()
    drain: tuple[str, ...] = ()
    resume: tuple[str, ...] = ()
    remove: tuple[str, ...] = ()


def change(listed: Collection[Listed], known: Collection[Known]) -> Change:
    """The steps from `known` towards `listed`.

    A replica that is not listed any more, or is listed with another URL, engine or model, drains,
    and is removed once nothing of this router's runs there; then it is added as it is listed now.
    One that is leaving drains and stays until it is not listed any more, and is not added before it
    has ceased to leave.
    """
    wanted = {each.spec.id: each for each in listed}
    drain, resume, remove = [], [], []
    for each in known:
        name = each.spec.id
        found = wanted.get(name)
        stays = found is not None and found.spec == each.spec
        if found is not None and stays and not found.leaving:
            if each.drained and each.state == "draining":
                resume.append(name)
        elif each.state == "ready":
            drain.append(name)
        elif not stays and (each.state != "draining" or not each.in_flight):
            remove.append(name)
    here = {each.spec.id for each in known}
    taken = {each.spec.url for each in known}
    add = [
        each.spec for name, each in wanted.items()
        if name not in here and each.spec.url not in taken and not each.leaving
    ]  # fmt: skip
    return Change(tuple(add), tuple(drain), tuple(resume), tuple(remove))


def twice(listed: Collection[Listed]) -> str | None:
    """What is wrong with a list that names one replica two times, in a few words; None if it does
    not."""
    ids: set[str] = set()
    urls: dict[str, str] = {}
    for each in listed:
        spec = each.spec
        if spec.id in ids:
            return f"two replicas have the id {spec.id!r}"
        if spec.url in urls:
            return f"{spec.url} is listed twice, as {urls[spec.url]!r} and as {spec.id!r}"
        ids.add(spec.id)
        urls[spec.url] = spec.id
    return None
