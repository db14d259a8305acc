"""`/sessile/v1/releases`: what a model's name means, and how it is swapped while sessions run."""

from typing import Annotated, Any

from fastapi import APIRouter, Depends
from pydantic import BaseModel, ConfigDict, Field

from sessile.api.auth import Authenticator
from sessile.release_list import ReleaseList

Percent = Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)]
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class NewSwap(_Body):
    """A swap to begin."""

    model: str = Field(min_length=1)
    to: str = Field(min_length=1)
    percent: Percent = 100.0
    deadline_s: Seconds | None = None


class Share(_Body):
    """How many of the new sessions go to the target."""

    percent: Percent


class Ending(_Body):
    """How long sessions may stay that are to move."""

    deadline_s: Seconds | None = None


def release_routes(releases: ReleaseList, auth: Authenticator) -> APIRouter:
    """List, begin, grow, finish, roll back."""
    routes = APIRouter(prefix="/sessile/v1/releases", tags=["sessile"])

    Tenant = Annotated[str, Depends(auth.told)]

    async def shown(model: str) -> dict[str, Any]:
        return next(each for each in await releases.shown() if each["model"] == model)

    @routes.get("")
    async def show(_: Tenant) -> dict[str, Any]:
        return {"releases": await releases.shown()}

    @routes.post("", status_code=201)
    async def swap(new: NewSwap, _: Tenant) -> dict[str, Any]:
        begun = await releases.swap(new.model, new.to, new.percent, new.deadline_s)
        return await shown(begun.served)

    @routes.post("/{model:path}/share")
    async def grow(model: str, asked: Share, _: Tenant) -> dict[str, Any]:
        return await shown((await releases.grow(model, asked.percent)).served)

    @routes.post("/{model:path}/finish")
    async def finish(model: str, asked: Ending, _: Tenant) -> dict[str, Any]:
        return await shown((await releases.finish(model, asked.deadline_s)).served)

    @routes.post("/{model:path}/roll-back")
    async def roll_back(model: str, asked: Ending, _: Tenant) -> dict[str, Any]:
        back = await releases.roll_back(model, asked.deadline_s or 0.0)
        return await shown(back.served)

    return routes
