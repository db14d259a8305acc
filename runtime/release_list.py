"""Which releases there are: begun, grown, finished and taken back here or at any router, and what
was counted of each.

Routers agree through the store, where a change is compared with what it changes. It is in force a
moment later, at all routers at once: each has heard of it by then. While the store is away what was
said last holds, and nothing can be changed.
"""

import asyncio
import logging
import secrets
import time
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from sessile.errors import InvalidRequest, NoReplica, SessileError, StoreUnavailable
from sessile.router.figures import ByVariant, Figures, total
from sessile.router.pool import Pool
from sessile.router.releases import (
    Release,
    Variant,
    begin,
    check_over,
    finish,
    grow,
    roll_back,
)
from sessile.sessions.store import Store
from sessile.settings import ReleaseSettings
from sessile.telemetry import Telemetry

log = logging.getLogger("sessile.releases")

_EVERY_S = 0.5  # a third of HEARD_S

_encode = msgspec.msgpack.Encoder().encode
_release = msgspec.msgpack.Decoder(Release).decode
_figures = msgspec.msgpack.Decoder(ByVariant).decode


class ReleaseList:
    """One a router, opened and closed by its lifespan; what it hears goes to the pool. Those
    `declared` by the settings are begun once they can be, where there is none of the model."""

    def __init__(
        self, pool: Pool, store: Store, telemetry: Telemetry,
        declared: Sequence[ReleaseSettings] = (),
    ) -> None:  # fmt: skip
        self._pool = pool
        self._store = store
        self._telemetry = telemetry
        self._declared = declared
        self._router = secrets.token_hex(6)
        self._waits: dict[str, str] = {}  # why a declared one has not begun
        self._told: dict[str, bytes] = {}  # our figures, as the store has them
        self._task: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Hear of the releases there are, before any turn is served, and then of each change."""
        await self.once()
        self._task = asyncio.create_task(self.run(), name="hear of releases")

    async def aclose(self) -> None:
        """Hear no more."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def run(self) -> None:
        """Hear what other routers were told, until cancelled."""
        while True:
            await asyncio.sleep(_EVERY_S)
            await self.once()
            for each in self._declared:
                if each.model not in self._pool.releases:
                    await self._begin(each)

    async def once(self) -> None:
        """Hear it now, tell what the store has lost, and what was counted here."""
        if not self._store.available:
            return
        try:
            said = await self._hear()
            for release in self._pool.releases:
                data = _encode(release)
                if said.get(release.served) != data:
                    await self._store.put_release(release.served, said.get(release.served), data)
            await self._tell_figures()
        except StoreUnavailable:
            return

    async def _begin(self, declared: ReleaseSettings) -> None:
        try:
            await self.swap(declared.model, declared.to, declared.percent)
        except SessileError as error:  # its replicas have not come up yet, say
            if self._waits.get(declared.model) != error.message:
                self._waits[declared.model] = error.message
                log.info("release waits model=%s why=%r", declared.model, error.message)

    # -- the commands

    async def swap(
        self, model: str, to: str, percent: float = 100.0, deadline_s: float | None = None
    ) -> Release:
        """Begin to replace what serves `model`, a model or an alias: `percent` of its new sessions
        go to `to`. Raises `ModelNotFound`, `InvalidRequest`, `StoreUnavailable`, and `NoReplica`
        where nothing of the target is ready."""
        self._pool.model(model)

        def change(before: Release | None, now: float) -> Release:
            check_over(before)
            source = self._source(model, before)
            target = self._target(to, source)
            self._check_alone(model, source, target)
            begun = begin(before, model, source, target, id=secrets.token_hex(8),
                          percent=percent, deadline_s=deadline_s, now=now)  # fmt: skip
            self._check_ready(target)
            return begun

        return await self._change(model, change)

    async def grow(self, model: str, percent: float) -> Release:
        """Give the target another percentage of the new sessions. Raises as `swap` does."""
        served = self._pool.meant(model)
        return await self._change(served, lambda r, now: grow(r, served, percent, now))

    async def finish(self, model: str, deadline_s: float | None = None) -> Release:
        """End the swap with its target. Raises as `swap` does."""
        served = self._pool.meant(model)

        def change(before: Release | None, now: float) -> Release:
            done = finish(before, served, deadline_s, now)
            self._check_ready(done.settled)
            return done

        return await self._change(served, change)

    async def roll_back(self, model: str, deadline_s: float = 0.0) -> Release:
        """End the swap with its source. Raises as `swap` does."""
        served = self._pool.meant(model)

        def change(before: Release | None, now: float) -> Release:
            back = roll_back(before, served, deadline_s, now)
            self._check_ready(back.settled)
            return back

        return await self._change(served, change)

    async def _change(
        self, served: str, change: Callable[[Release | None, float], Release]
    ) -> Release:
        try:
            said = await self._hear()
            release = change(self._pool.releases.get(served), time.time())
            data = _encode(release)
            if await self._store.put_release(served, said.get(served), data) != data:
                raise InvalidRequest(
                    f"somebody else has just changed what {served!r} means; look at it again"
                )
        except StoreUnavailable as error:
            raise StoreUnavailable(
                "the session store is away, so that no other router could hear of it; what was "
                f"said last of {served!r} holds, try again"
            ) from error
        self._take(release)
        return release

    # -- what a name means

    def _source(self, served: str, before: Release | None) -> Variant:
        if before is not None:
            return before.settled
        model = self._pool.aliases.get(served, served)
        return Variant(name=model, model=model)

    def _target(self, to: str, source: Variant) -> Variant:
        """The variant that a person means by `to`: a model, MODEL@GROUP, or a group alone."""
        pool = self._pool
        model, at, group = to.rpartition("@")
        if at and to not in pool.models():
            return self._grouped(to, pool.aliases.get(model, model), group, source)
        is_group = any(r.is_of(to) for r in pool)
        asked = pool.aliases.get(to, to)
        if asked in pool.models():
            if is_group:
                raise InvalidRequest(
                    f"{to!r} is both a model and a pool; write {asked}@{to} for the pool",
                    param="to",
                )
            waiting = {r.spec.pool for r in pool if asked in r.models and r.spec.standby}
            whole = Variant(name=asked, model=asked)
            if len(waiting) == 1 and not any(pool.members(whole)):
                (standby,) = waiting
                return self._grouped(to, asked, standby or "", source)
            return whole
        if not is_group:
            groups = sorted({r.spec.pool for r in pool if r.spec.pool})
            raise InvalidRequest(
                f"{to!r} is no model, pool or engine version here; there are the models "
                f"{', '.join(pool.models()) or 'none'} and the pools {', '.join(groups) or 'none'}",
                param="to",
            )
        serves = {model: None for r in pool if r.is_of(to) for model in r.models}
        if source.model in serves:
            return self._grouped(to, source.model, to, source)
        if len(serves) != 1:
            names = ", ".join(serves) or "none yet"
            raise InvalidRequest(
                f"name the model of {to!r} that is meant, as MODEL@{to}; it serves {names}",
                param="to",
            )
        return self._grouped(to, next(iter(serves)), to, source)

    def _grouped(self, to: str, model: str, group: str, source: Variant) -> Variant:
        variant = Variant(name=f"{model}@{group}", model=model, group=group)
        members = list(self._pool.members(variant))
        if not members:
            raise InvalidRequest(f"no replica of {group!r} serves {model!r}", param="to")
        rest = [r for r in self._pool.serving(source.name) if r not in members]
        if source.model == model and source.name != variant.name and not rest:
            raise InvalidRequest(
                f"{to!r} is all that serves {model!r}: there is nothing to swap", param="to"
            )
        return variant

    def _check_alone(self, served: str, source: Variant, target: Variant) -> None:
        """A variant is a set of replicas, not a name with a release of its own."""
        for release in self._pool.releases:
            other = release.served
            if other != served and served in release.names:
                raise InvalidRequest(
                    f"{served!r} is a variant of {other!r}: swap that one", param="model"
                )
            if other != served and other in (source.name, target.name):
                raise InvalidRequest(
                    f"{other!r} has a release of its own: swap that one, or to one of "
                    f"{', '.join(release.names)}", param="to",
                )  # fmt: skip

    def _check_ready(self, variant: Variant) -> None:
        if not any(r.state == "ready" for r in self._pool.members(variant)):
            raise NoReplica(
                f"no replica of {variant.name!r} is ready, so that nothing would serve; see "
                "`sessile replicas`"
            )

    # -- what is told

    async def _hear(self) -> dict[str, bytes]:
        said = await self._store.releases()
        for served, data in said.items():
            try:
                release = _release(data)
            except msgspec.MsgspecError:
                log.warning("release of another router was not understood model=%s", served)
                continue
            known = self._pool.releases.get(served)
            if known is None or release.since > known.since:
                self._take(release)
        return said

    def _take(self, release: Release) -> None:
        before = self._pool.releases.get(release.served)
        if before is None or before.id != release.id:
            self._telemetry.variants.pop(release.served, None)
        self._pool.releases.put(release)
        self._pool.releases_changed()
        log.info("release changed model=%s state=%s variants=%s", release.served, release.state,
                 ",".join(f"{v.name}:{v.weight:g}" for v in release.variants))  # fmt: skip

    async def _tell_figures(self) -> None:
        self._telemetry.flush()
        for release in self._pool.releases:
            data = _encode(self._telemetry.variants.get(release.served, {}))
            if self._told.get(release.id) != data:
                await self._store.put_figures(release.id, self._router, data)
                self._told[release.id] = data

    # -- what is shown

    async def shown(self) -> list[dict[str, Any]]:
        """Each release with the figures of its variants side by side, of all routers; of this one
        alone while the store is away."""
        await self.once()  # whatever was commanded elsewhere is shown here too
        self._telemetry.flush()
        found = []
        for release in self._pool.releases:
            parts = [self._telemetry.variants.get(release.served, {})]
            try:
                told = await self._store.figures(release.id)
                parts += [_figures(data) for name, data in told.items() if name != self._router]
            except StoreUnavailable:
                log.debug("figures are of this router alone model=%s", release.served)
            except msgspec.MsgspecError:
                log.warning("figures of another router were not understood")
            found.append(self._described(release, total(parts), len(parts)))
        return found

    def _described(self, release: Release, counted: ByVariant, routers: int) -> dict[str, Any]:
        now = time.time()
        return {
            "model": release.served,
            "state": release.state,
            "source": release.source,
            "target": release.target,
            "in_force_in_s": max(0.0, release.since - now),
            "deadline_s": release.deadline_s,
            "routers": routers,
            "variants": [
                self._side(variant, counted.get(variant.name, Figures()), now)
                for variant in release.variants
            ],
        }

    def _side(self, variant: Variant, counted: Figures, now: float) -> dict[str, Any]:
        serving = list(self._pool.serving(variant.name))
        return {
            "variant": variant.name,
            "percent": variant.weight,
            "moves_in_s": None if variant.until is None else max(0.0, variant.until - now),
            "ready": sum(r.state == "ready" for r in serving),
            "replicas": [r.id for r in serving],
            "sessions": counted.sessions,
            "swapped": counted.swapped,
            "turns": counted.turns,
            "errors": counted.errors,
            "refused": counted.refused,
            "ttft_p50_s": counted.ttft_s(0.5),
            "ttft_p90_s": counted.ttft_s(0.9),
            "tokens_per_s": counted.tokens_per_s,
            "completion_tokens": counted.completion_tokens,
            "hit_rate": counted.hit_rate,
        }
