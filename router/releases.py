"""Releases: which variant of a served name a session belongs to, and how a swap from one variant to
another begins, grows, ends or is taken back. Pure; `sessile.variants` asks the store and
`sessile.release_list` keeps routers agreed.

A served name is what clients ask for. A variant is a set of replicas: those of a model, or of them
only those of one pool or one engine version, written MODEL@POOL or MODEL@ENGINE-VERSION. Sessions,
bindings and news know a variant by its name, as they know a model: so neither a failover nor a move
ever crosses from one to another.
"""

from collections.abc import Collection, Iterator, Sequence
from hashlib import blake2b
from math import log
from typing import Literal

import msgspec

from sessile.errors import InvalidRequest

HEARD_S = 1.5
"""How long after a command it is in force: by then every router has heard of it, which ask twice a
second."""
_APART_S = 2.0  # more than clocks of routers are apart
_LINGERS_S = 24 * 3600.0  # sessions are remembered so long: a closed one is not to open again


class Variant(msgspec.Struct, frozen=True, kw_only=True):
    """A set of replicas: those that serve `model`, or those of them in `group`, a pool or an engine
    version. `weight` is the percentage of new sessions that it takes. Without any it is being left:
    its sessions stay there until `until` (Unix time; None: until they end)."""

    name: str
    model: str
    group: str | None = None
    weight: float = 0.0
    until: float | None = None


class Release(msgspec.Struct, frozen=True, kw_only=True):
    """What a served name means. Each command makes a new one in its place, in force from `since`;
    until then, while not every router has heard of it, `was` is.

    `id` is one swap's, from its begin to its end. Invariant: `source` and `target` are the names of
    the first two variants; those behind them are being left since earlier swaps.
    """

    served: str
    id: str
    state: Literal["under_way", "finished", "rolled_back"]
    since: float
    source: str
    target: str
    variants: tuple[Variant, ...]
    was: tuple[Variant, ...] = ()
    deadline_s: float | None = None

    @property
    def names(self) -> list[str]:
        """All variants that are in force now or were a moment ago."""
        return list(dict.fromkeys(v.name for v in (*self.variants, *self.was)))

    def is_calm(self, now: float) -> bool:
        """Whether nothing changes about now: routers whose clocks differ see the same."""
        times = [self.since, *(v.until for v in self.variants if v.until is not None)]
        return all(abs(now - at) > _APART_S for at in times)

    def at(self, now: float) -> tuple[Variant, ...]:
        """The variants in force."""
        return self.variants if now >= self.since else self.was

    @property
    def spare(self) -> str | None:
        """The variant that may take new sessions though it is to get none, while nothing else can:
        the source, until the swap has ended."""
        return self.source if self.state == "under_way" else None

    @property
    def settled(self) -> Variant:
        """What the name meant before the swap, and the target once that is finished."""
        source, target, *_ = self.variants
        return target if self.state == "finished" else source


# -- which variant


def choose(
    variants: Sequence[Variant], key: str, able: Collection[str], spare: str | None = None
) -> Variant:
    """The variant of a new session, the same at every router, by weighted rendezvous hashing: more
    weight for one only ever moves keys to it. One that has no ready replica is passed over while
    another has, or the `spare` one."""
    open_to = [v for v in variants if v.weight > 0 and v.name in able]
    open_to = open_to or [v for v in variants if v.name == spare and v.name in able]
    open_to = open_to or [v for v in variants if v.weight > 0]
    return max(open_to, key=lambda variant: (_score(variant, key), variant.name))


def _score(variant: Variant, key: str) -> float:
    data = f"{variant.name}\x1f{key}".encode("utf-8", "surrogatepass")
    drawn = int.from_bytes(blake2b(data, digest_size=7).digest()) + 1
    return variant.weight / -log(drawn / (2**56 + 1))


def keeping(variants: Sequence[Variant], now: float, able: Collection[str]) -> list[str]:
    """The variants whose sessions stay. One that is being left keeps them until its time is up, or
    nothing is ready there any more; one that takes new ones keeps them whatever happens."""
    return [
        v.name
        for v in variants
        if v.weight > 0 or (v.name in able and (v.until is None or now < v.until))
    ]


def is_over(variants: Sequence[Variant], now: float) -> bool:
    """Whether every session belongs to the one variant that is left, for a while already."""
    left = [v for v in variants if v.weight <= 0]
    if len(variants) - len(left) != 1:
        return False
    return all(v.until is not None and now >= v.until + _LINGERS_S for v in left)


# -- the life of a swap


def begin(
    before: Release | None, served: str, source: Variant, target: Variant, *, id: str,
    percent: float, deadline_s: float | None, now: float,
) -> Release:  # fmt: skip
    """Give `percent` of the new sessions to `target`; `source` is what the name means now. Raises
    `InvalidRequest` for a swap onto itself, and while another is under way."""
    check_over(before)
    if source.name == target.name:
        raise InvalidRequest(f"{served!r} is served by {target.name!r} already", param="to")
    was: tuple[Variant, ...] = (msgspec.structs.replace(source, weight=100.0, until=None),)
    if before is not None:
        was = before.at(now)
    ends = (source.name, target.name)
    known = was if before is None else before.variants
    left = [v for v in known if v.name not in ends and (v.until is None or v.until > now)]
    begun = Release(
        served=served, id=id, state="under_way", since=now + HEARD_S, source=source.name,
        target=target.name, variants=(source, target, *left), was=was, deadline_s=deadline_s,
    )  # fmt: skip
    return _divide(begun, "under_way", percent, deadline_s, now)


def check_over(release: Release | None) -> None:
    """Raise `InvalidRequest` while a swap is under way."""
    if release is not None and release.state == "under_way":
        raise InvalidRequest(
            f"a swap of {release.served!r} to {release.target!r} is under way: finish it or roll "
            "it back"
        )


def grow(release: Release | None, served: str, percent: float, now: float) -> Release:
    """Give the target another percentage of the new sessions. Raises `InvalidRequest` where nothing
    is under way."""
    release = _under_way(release, served)
    return _divide(release, "under_way", percent, release.deadline_s, now)


def finish(release: Release | None, served: str, deadline_s: float | None, now: float) -> Release:
    """All new sessions go to the target, and another swap may begin; those of the source stay for
    `deadline_s`, else for as long as the swap was begun with. Raises `InvalidRequest`."""
    release = _under_way(release, served)
    deadline_s = release.deadline_s if deadline_s is None else deadline_s
    source = release.variants[0]
    if source.weight <= 0 and source.until is not None and deadline_s == release.deadline_s:
        deadline_s = max(0.0, source.until - now - HEARD_S)  # it runs already
    return _divide(release, "finished", 100.0, deadline_s, now)


def roll_back(release: Release | None, served: str, deadline_s: float, now: float) -> Release:
    """All new sessions go to the source again, those of the target too after `deadline_s`; of a
    swap that has finished, as well. Raises `InvalidRequest` where there is none."""
    if release is None or release.state == "rolled_back":
        raise InvalidRequest(f"there is no swap of {served!r} to roll back")
    back = _divide(release, "rolled_back", 0.0, None, now)
    source, target, *left = back.variants
    target = msgspec.structs.replace(target, until=back.since + deadline_s)
    return msgspec.structs.replace(back, variants=(source, target, *left))


def _under_way(release: Release | None, served: str) -> Release:
    if release is None or release.state != "under_way":
        raise InvalidRequest(f"no swap of {served!r} is under way; begin one with --to", param="to")
    return release


def _divide(
    release: Release, state: Literal["under_way", "finished", "rolled_back"], percent: float,
    deadline_s: float | None, now: float,
) -> Release:  # fmt: skip
    """The release with these weights, after what is in force `now`."""
    if not 0 <= percent <= 100:
        raise InvalidRequest(f"percent must be from 0 to 100, not {percent:g}", param="percent")
    if deadline_s is not None and not 0 <= deadline_s < float("inf"):
        raise InvalidRequest("deadline must be 0 seconds or more", param="deadline_s")
    source, target, *left = release.variants
    since = now + HEARD_S
    until = since + deadline_s if percent >= 100 and deadline_s is not None else None
    source = msgspec.structs.replace(source, weight=100.0 - percent, until=until)
    target = msgspec.structs.replace(target, weight=float(percent), until=None)
    return msgspec.structs.replace(
        release, state=state, variants=(source, target, *left), since=since, was=release.at(now)
    )


# -- those that a router knows


class Releases:
    """The releases that one router knows, by served name. Made with the pool."""

    def __init__(self) -> None:
        self._known: dict[str, Release] = {}
        self._variants: dict[str, Variant] = {}
        self._groups: dict[str, frozenset[str]] = {}

    def __iter__(self) -> Iterator[Release]:
        return iter(list(self._known.values()))

    def __contains__(self, served: str) -> bool:
        return served in self._known

    def __bool__(self) -> bool:
        return bool(self._known)

    def get(self, served: str) -> Release | None:
        """What the name means; None: itself."""
        return self._known.get(served)

    def put(self, release: Release) -> None:
        """The name means this from now on."""
        self._known[release.served] = release
        self._variants = {
            v.name: v for each in self._known.values() for v in (*each.was, *each.variants)
        }
        groups: dict[str, set[str]] = {}
        for variant in self._variants.values():
            if variant.group is not None:
                groups.setdefault(variant.model, set()).add(variant.group)
        self._groups = {model: frozenset(names) for model, names in groups.items()}

    def variant(self, name: str) -> Variant | None:
        """The variant of that name, whatever its weight."""
        return self._variants.get(name)

    @property
    def variants(self) -> Collection[Variant]:
        """All of them, also those being left."""
        return self._variants.values()

    def groups(self, model: str) -> frozenset[str]:
        """The groups of the model's replicas that are variants of their own, and so no part of the
        model."""
        return self._groups.get(model, frozenset())
