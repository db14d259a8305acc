"""`/sessile/v1/adapters`: the LoRA adapters, listed, and declared while the router runs."""

from typing import Annotated, Any

from fastapi import APIRouter, Depends
from pydantic import BaseModel, ConfigDict, Field

from sessile.adapter_list import AdapterList
from sessile.api.auth import Authenticator
from sessile.router.adapters import Adapter
from sessile.router.pool import Pool
from sessile.settings import ADAPTER_NAME


class NewAdapter(BaseModel):
    """An adapter to serve under its name."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(pattern=ADAPTER_NAME)
    base: str = Field(min_length=1)
    path: str = Field(min_length=1)


def adapter_routes(adapters: AdapterList, pool: Pool, auth: Authenticator) -> APIRouter:
    """List, add, remove."""
    routes = APIRouter(prefix="/sessile/v1/adapters", tags=["sessile"])

    Tenant = Annotated[str, Depends(auth.told)]

    @routes.get("")
    async def show(_: Tenant) -> dict[str, Any]:
        shown = [_shown(pool, adapter) for adapter in pool.adapters]
        return {"adapters": [each for each in shown if each["path"] or each["loaded"]]}

    @routes.post("", status_code=201)
    async def add(new: NewAdapter, _: Tenant) -> dict[str, Any]:
        adapter = Adapter(name=new.name, base=new.base, path=new.path)
        await adapters.add(adapter)
        return _shown(pool, adapter)

    @routes.delete("/{name:path}")
    async def remove(name: str, _: Tenant) -> dict[str, Any]:
        return _shown(pool, await adapters.remove(name))

    return routes


def _shown(pool: Pool, adapter: Adapter) -> dict[str, Any]:
    name = adapter.name
    refused = {
        r.id: why for r in pool
        if (why := pool.adapters.refusal(name, r.server, r.incarnation or "")) is not None
    }  # fmt: skip
    return {
        "name": name,
        "base": adapter.base,
        "path": adapter.path,
        "loaded": [r.id for r in pool if name in r.outlook.shelf.loaded],
        "refused": refused,
    }
