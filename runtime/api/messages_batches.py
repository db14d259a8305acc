"""`/v1/messages/batches`: refused by name, whatever is asked of it."""

from fastapi import APIRouter, Request

from sessile.api.auth import Authenticator
from sessile.errors import NotSupported

_METHODS = ["GET", "POST", "DELETE"]


def batch_routes(auth: Authenticator) -> APIRouter:
    """All that Anthropic's API has below that path."""
    routes = APIRouter(prefix="/v1/messages/batches", include_in_schema=False)

    @routes.api_route("", methods=_METHODS)
    @routes.api_route("/{rest:path}", methods=_METHODS)
    async def batches(request: Request) -> None:
        auth.tenant_of_message(request.scope["headers"])
        raise NotSupported(
            "message batches are not supported; send each message to /v1/messages, with the header "
            "X-Priority: 2 to let others go first"
        )

    return routes
