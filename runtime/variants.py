"""Finds every session of a name that has a release the variant that it belongs to.

The rules are `router.releases`; here they meet the store, whose word holds for every router, and
what this router remembers stands in while the store is away.
"""

import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence

import msgspec

from sessile.errors import SessionExpired, StoreUnavailable
from sessile.router.pool import Pool
from sessile.router.releases import Release, Variant, choose, is_over, keeping
from sessile.sessions.binding import Standings
from sessile.sessions.record import SessionKey
from sessile.sessions.store import Assignment, Store

_MOST_KNOWN = 100_000


class _Known(msgspec.Struct, frozen=True, gc=False):
    """What was said of a session, while `variants` were in force; `at` is on the monotonic clock,
    None for what the store never said."""

    variant: str
    variants: tuple[Variant, ...]
    at: float | None


class Variants:
    """One a router, made by `Flow`. A session's own word costs a round trip to the store unless it
    was told a moment ago; a session that is known to be new costs none. `hear` has this router
    hear of releases now."""

    def __init__(
        self, pool: Pool, store: Store, standings: Standings, confirm_s: float,
        hear: Callable[[], Awaitable[None]],
    ) -> None:  # fmt: skip
        self._pool = pool
        self._store = store
        self._standings = standings
        self._confirm_s = confirm_s
        self._hear = hear
        self._known: OrderedDict[SessionKey, _Known] = OrderedDict()

    async def of(
        self, key: SessionKey, parent: str | None = None, *, known: bool = True
    ) -> Assignment:
        """The variant of the session `key`, whose model is the served name. One that grew out of
        another goes where its `parent` is. With `known` False it has never been here before."""
        release = self._pool.releases.get(key.model)
        assert release is not None
        now = time.time()
        variants = release.at(now)
        able = [v.name for v in variants if self._pool.outlooks(v.name)]
        if is_over(variants, now):
            return Assignment(choose(variants, key.text, able).name, new=not known)
        stays = keeping(variants, now, able)
        spare = release.spare if release.spare in stays else None
        before = self._known.get(key) if known else None
        held = before.variant if before is not None and before.variant in stays else None
        calm = release.is_calm(now)
        if held is not None and before is not None and calm and self._holds(before, variants):
            return Assignment(held)
        proposal = held
        if proposal is None and parent is not None and parent != key.session:
            proposal = (await self.of(SessionKey(key.tenant, key.model, parent))).variant
        if proposal is None:
            proposal = choose(variants, key.text, able, spare).name
        if not known:
            return Assignment(proposal, new=True)
        at: float | None = time.monotonic()
        try:
            found = await self._ask(key, release, variants, stays, proposal)
        except StoreUnavailable:
            at = None
            found = self._believe(key, before, stays, proposal)
        self._known[key] = _Known(found.variant, variants, at)
        self._known.move_to_end(key)
        if len(self._known) > _MOST_KNOWN:
            self._known.popitem(last=False)
        return found

    async def _ask(
        self, key: SessionKey, release: Release, variants: Sequence[Variant],
        stays: Sequence[str], proposal: str,
    ) -> Assignment:  # fmt: skip
        """The store's word. A variant that this router does not know is one that it has yet to hear
        of, or one that was left too long ago to be remembered: there, only a closed session stays.
        """
        ours = {v.name for v in variants}
        stays = [*stays, *(name for name in release.names if name not in ours)]
        found = await self._store.assign(key, release.names, stays, proposal)
        if self._pool.releases.variant(found.variant) is None:
            await self._hear()
            if self._pool.releases.variant(found.variant) is None:
                names = [*release.names, found.variant]
                found = await self._store.assign(key, names, stays, proposal)
                if found.variant == names[-1]:
                    raise SessionExpired(f"session {key.session!r} is closed; open a new one")
        return found

    def _holds(self, before: _Known, variants: tuple[Variant, ...]) -> bool:
        """Whether the store need not be asked again: nothing was commanded since, and it was not
        away, when it may have lost what it said."""
        if before.variants is not variants or before.at is None or not self._store.available:
            return False
        since = max(self._store.available_since, time.monotonic() - self._confirm_s)
        return before.at >= since

    def _believe(
        self, key: SessionKey, before: _Known | None, stays: Sequence[str], proposal: str
    ) -> Assignment:
        """What is known here of the session, else what all routers would propose."""
        if before is None:
            for name in stays:
                if self._standings.get(SessionKey(key.tenant, name, key.session)) is not None:
                    return Assignment(name)
            return Assignment(proposal, new=True)
        return Assignment(proposal, before.variant if before.variant != proposal else None)
