"""`/v1/models`: what the pool serves, in OpenAI's shape."""

from typing import Annotated, Any

from fastapi import APIRouter, Header

from sessile.api.auth import Authenticator
from sessile.router.pool import Pool


def model_routes(pool: Pool, auth: Authenticator) -> APIRouter:
    """The list, and one model of it."""
    routes = APIRouter(prefix="/v1", tags=["openai"])

    @routes.get("/models")
    async def models(
        authorization: Annotated[str | None, Header()] = None,
        x_api_key: Annotated[str | None, Header()] = None,
    ) -> dict[str, Any]:
        auth.tenant(authorization, api_key=x_api_key)
        served = pool.models()
        others = [a for a, m in pool.aliases.items() if m in served]
        others += [release.served for release in pool.releases]
        names = dict.fromkeys([*served, *others])
        return {"object": "list", "data": [_model(pool, name) for name in names]}

    @routes.get("/models/{name:path}")
    async def model(
        name: str,
        authorization: Annotated[str | None, Header()] = None,
        x_api_key: Annotated[str | None, Header()] = None,
    ) -> dict[str, Any]:
        auth.tenant(authorization, api_key=x_api_key)
        pool.model(name)  # raises for one that is not served
        return _model(pool, name)

    return routes


def _model(pool: Pool, name: str) -> dict[str, Any]:
    """`root` is the model that serves a request for `name`: another one for an alias."""
    root = pool.meant(name)
    if (release := pool.releases.get(root)) is not None:
        root = release.settled.name
    serving = list(pool.serving(root))
    contexts = [
        r.identity.context_tokens for r in serving if r.identity and r.identity.context_tokens
    ]
    adapter = pool.adapters.get(root)
    return {
        "id": name,
        "object": "model",
        "created": 0,
        "owned_by": "sessile",
        "root": root,
        "max_model_len": min(contexts, default=None),
        **({"parent": adapter.base} if adapter is not None else {}),
    }
