"""The least that a relay in Python can be: the yardstick beside which the router's cost is told.

`python -m sessile.lab.bare_relay PORT UPSTREAM_URL`: a bare ASGI application in the same server,
with the same connections upstream, that passes bytes on and knows nothing of what they say.
"""

import sys

import uvicorn
import uvloop
from starlette.types import Receive, Scope, Send

from sessile.lab.asgi import read_body
from sessile.router.connection import Timeouts
from sessile.router.upstream import Upstream


class BareRelay:
    """POSTs every request's body to the same path upstream, and passes on the answer's bytes."""

    def __init__(self, url: str) -> None:
        self._upstream = Upstream(url, Timeouts(connect_s=3.0, first_byte_s=60.0, idle_s=60.0))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = await read_body(receive)
        answer = await self._upstream.open(scope["method"], scope["path"], body)
        names = (b"content-type", b"content-length")
        headers = [(name, answer.headers[name]) for name in names if name in answer.headers]
        await send({"type": "http.response.start", "status": answer.status, "headers": headers})
        async for chunk in answer:
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _main(port: int, url: str) -> None:
    config = uvicorn.Config(
        BareRelay(url), port=port, http="httptools", lifespan="off", access_log=False,
        log_config=None, server_header=False, date_header=False, timeout_keep_alive=75,
    )  # fmt: skip
    await uvicorn.Server(config).serve()


if __name__ == "__main__":
    uvloop.run(_main(int(sys.argv[1]), sys.argv[2]))
