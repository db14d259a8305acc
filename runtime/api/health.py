"""What probes and Prometheus ask: whether turns can be served, and the metrics."""

from collections.abc import Callable

from fastapi import APIRouter, Response
from fastapi.responses import JSONResponse

from sessile.discovery.follow import Discovery
from sessile.router.pool import Pool
from sessile.sessions.store import Store


def health_routes(
    pool: Pool, store: Store, scrape: Callable[[], bytes], discovery: Discovery
) -> APIRouter:
    """`/health`, `/ready` and `/metrics`: open to all, as probes carry no key."""
    routes = APIRouter(tags=["health"])

    @routes.get("/health")
    async def health() -> dict[str, str]:
        """The process answers."""
        return {"status": "ok"}

    @routes.get("/ready")
    async def ready() -> JSONResponse:
        """Whether turns can be served: 503 without a ready replica; a store that is away, or a
        source of replicas that cannot be read, only degrades."""
        states = [replica.state for replica in pool]
        up = states.count("ready")
        failing = discovery.failing
        status = "ready" if store.available and not failing else "degraded"
        if not up:
            status = "starting" if "starting" in states else "down"
        return JSONResponse(
            {
                "status": status,
                "store": "ok" if store.available else "degraded",
                "replicas": {"ready": up, "total": len(states)},
                "discovery": {e.name: failing.get(e.name, "ok") for e in discovery.followed},
            },
            200 if up else 503,
        )

    @routes.get("/metrics")
    async def metrics() -> Response:
        """Prometheus' text form."""
        return Response(scrape(), media_type="text/plain; version=0.0.4; charset=utf-8")

    return routes
