"""The client for browsers, an ES module, and what a browser cannot say by headers."""

from collections.abc import Sequence
from importlib.resources import files
from urllib.parse import parse_qs

from fastapi import APIRouter, Response

_DECLARED = {
    "on_disconnect": b"x-sessile-on-disconnect",
    "when_busy": b"x-sessile-when-busy",
}


def browser_routes() -> APIRouter:
    """`/sessile/client.js`, which holds no secret: whoever asks is given it."""
    routes = APIRouter(tags=["sessile"])
    module = files("sessile.client").joinpath("browser.js").read_bytes()

    @routes.get("/sessile/client.js")
    async def client() -> Response:
        """One ES module: `import { Session } from ".../sessile/client.js"`."""
        headers = {"Cache-Control": "no-cache"}
        return Response(module, media_type="text/javascript", headers=headers)

    return routes


def declared(headers: Sequence[tuple[bytes, bytes]], query: bytes) -> list[tuple[bytes, bytes]]:
    """A handshake's headers, with `on_disconnect` and `when_busy` from its address for those that
    a browser cannot send."""
    told = parse_qs(query.decode("latin-1"))
    found = [(name, told[key][0]) for key, name in _DECLARED.items() if key in told]
    return [*headers, *((name, value.encode()) for name, value in found)]
