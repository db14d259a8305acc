"""The connections to one replica, before a fake one."""

import asyncio

from sessile.lab.fake_replica import serve_fake
from sessile.router.connection import Timeouts
from sessile.router.engine import Call
from sessile.router.upstream import Upstream

TIMEOUTS = Timeouts(connect_s=5.0, first_byte_s=5.0, idle_s=5.0)
MODELS = Call("GET", "/v1/models")


async def test_a_connection_serves_again_and_is_closed_when_nobody_wants_it() -> None:
    """After a burst as many connections are kept as it had, for their time and no longer."""
    async with serve_fake() as replica:
        upstream = Upstream(replica.url, TIMEOUTS, idle_kept_s=2.0)
        await asyncio.gather(*(upstream.call(MODELS, 5.0) for _ in range(8)))
        await upstream.call(MODELS, 5.0)
        assert replica.connections == 8 and upstream.streams == 0
        await replica.until(lambda r: r.connections == 0)
        assert (await upstream.call(MODELS, 5.0)).status == 200
        await upstream.aclose()
        await replica.until(lambda r: r.connections == 0)
