"""Replicas behind one name: each address that it resolves to is a replica at the same port.

That is what a headless service of Kubernetes is, or `tasks.NAME` of a Swarm. An address that is not
given any more drains. A name that does not resolve has failed, and changes nothing.
"""

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Collection

from sessile.discovery.named import replica, url_of
from sessile.errors import DiscoveryFailed
from sessile.router.discovery import Listed

_EVERY_S = 5.0

Resolve = Callable[[str, int], Awaitable[Collection[str]]]
"""The addresses of a host; raises `OSError` if there are none."""


class DnsSource:
    """The addresses of one host name. `engine` and `model` are those of the pool."""

    def __init__(
        self, name: str, host: str, port: int, engine: str, model: str | None, *,
        every_s: float = _EVERY_S, resolve: Resolve | None = None,
    ) -> None:  # fmt: skip
        self.name = name
        self._host = host
        self._port = port
        self._engine = engine
        self._model = model
        self._every_s = every_s
        self._resolve = resolve or addresses

    async def lists(self) -> AsyncIterator[tuple[Listed, ...]]:
        """As `Source` says."""
        while True:
            try:
                found = await self._resolve(self._host, self._port)
            except OSError as error:
                why = error.strerror or error
                raise DiscoveryFailed(f"{self._host} does not resolve: {why}") from error
            urls = [url_of(address, self._port) for address in sorted(set(found))]
            yield tuple(Listed(replica(self._engine, url, self._model)) for url in urls)
            await asyncio.sleep(self._every_s)


async def addresses(host: str, port: int) -> list[str]:
    """Those of the system's resolver, IPv4 and IPv6."""
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(sockaddr[0]) for *_, sockaddr in found]
