"""The client for browsers, an ES module, and what a browser cannot say by headers."""

from collections.abc import Sequence
from importlib.resources import files
from urllib.parse import parse_qs

from fastapi import APIRouter, Response


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
    """A handshake's headers, with `on_disconnect` from its address for the one that a browser
    cannot send."""
    found = parse_qs(query.decode("latin-1")).get("on_disconnect", ())
    return [*headers, *((b"x-sessile-on-disconnect", value.encode()) for value in found[:1])]
