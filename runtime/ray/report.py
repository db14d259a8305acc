"""What a router tells the roll of a Ray Serve application: read off its pool, its queue and its
turns; nothing is decided here."""

import secrets
import time
from collections.abc import Collection

from sessile.flow import Flow
from sessile.ray.roll import Held, Report
from sessile.router.pool import Pool
from sessile.router.replica import ReplicaSpec
from sessile.router.server import Server
from sessile.telemetry import Telemetry

_RECENT_S = 30.0


class Reporter:
    """One a router, made by `app`, for all the applications that it serves."""

    def __init__(self, pool: Pool, flow: Flow, telemetry: Telemetry) -> None:
        self._pool = pool
        self._flow = flow
        self._telemetry = telemetry
        self._router = secrets.token_hex(6)

    def __call__(self, model: str | None, specs: Collection[ReplicaSpec], ttft_s: float) -> Report:
        """The report on the replicas of one application, which serves `model`."""
        known = self._pool.servers
        servers = [server for spec in specs if (server := known.get(spec.id)) is not None]
        replicas = [replica for server in servers for replica in server.replicas]
        models = {name for replica in replicas for name in replica.models}
        now = time.monotonic()
        waited = [
            now - waiting.at for waiting in self._flow.scheduler.queue.ordered(now)
            if waiting.ask.model in models
        ]  # fmt: skip
        coming = [r.outlook.wait_s(now) for r in replicas if r.state == "ready"]
        names = {replica.id for replica in replicas}
        recent = [t for r, t in self._telemetry.first_tokens(_RECENT_S) if r in names]
        return Report(
            router=self._router,
            holds={server.spec.id: self._held(server) for server in servers},
            queued=len(waited),
            wait_s=max(min(coming, default=0.0), max(waited, default=0.0)),
            turns=len(recent),
            late=sum(seconds > ttft_s for seconds in recent),
            missed=self._pool.missed(model) if model is not None else 0,
        )

    def _held(self, server: Server) -> Held:
        """Its ranks are one to Ray Serve, which starts and ends them together."""
        outlooks = [replica.outlook for replica in server.replicas]
        slots = [outlook.slots for outlook in outlooks]
        totals = [outlook.total_tokens for outlook in outlooks]
        live, total = sum(o.holdings.live_tokens for o in outlooks), sum(t or 0 for t in totals)
        return Held(
            server.in_flight,
            server.state == "draining",
            sum(self._flow.still_to_move(replica.id) for replica in server.replicas),
            None if None in slots else sum(n or 0 for n in slots),
            live / total if all(totals) else None,
        )
