"""Sends the router's HTTP calls, in a thread's way and in a loop's; decides nothing else."""

from contextlib import AbstractAsyncContextManager
from typing import TypeVar

import httpx2

from sessile.client.address import Address
from sessile.client.calls import Call, unreachable

T = TypeVar("T")

_TIMEOUT_S = 30.0


def _headers(address: Address) -> dict[str, str]:
    return {**address.headers(), "Content-Type": "application/json"}


class Http:
    """A router's HTTP side, for threads; connects at the first call."""

    def __init__(self, address: Address) -> None:
        self._address = address
        self._client = httpx2.Client(
            base_url=address.url, headers=_headers(address), timeout=_TIMEOUT_S
        )

    @property
    def url(self) -> str:
        """The router's base URL."""
        return self._address.url

    def call(self, call: Call[T]) -> T:
        """Send and read; raises `RouterUnreachable`, or the error that the router tells of."""
        try:
            answer = self._client.request(
                call.method, call.path, content=call.content(), headers=call.headers
            )
        except httpx2.TransportError as error:
            raise unreachable(self._address.url, error) from error
        return call.read(answer.status_code, answer.content)

    def close(self) -> None:
        """Let go of the connections."""
        self._client.close()


class AsyncHttp:
    """The same, for an event loop."""

    def __init__(self, address: Address) -> None:
        self._address = address
        self._client = httpx2.AsyncClient(
            base_url=address.url, headers=_headers(address), timeout=_TIMEOUT_S
        )

    @property
    def url(self) -> str:
        """The router's base URL."""
        return self._address.url

    async def call(self, call: Call[T]) -> T:
        """Send and read; raises `RouterUnreachable`, or the error that the router tells of."""
        try:
            answer = await self._client.request(
                call.method, call.path, content=call.content(), headers=call.headers
            )
        except httpx2.TransportError as error:
            raise unreachable(self._address.url, error) from error
        return call.read(answer.status_code, answer.content)

    def stream(
        self, call: Call[T], timeout_s: float
    ) -> AbstractAsyncContextManager[httpx2.Response]:
        """Send, and leave the answer to be read; `timeout_s` is the longest silence in it."""
        timeout = httpx2.Timeout(_TIMEOUT_S, read=timeout_s)
        return self._client.stream(call.method, call.path, timeout=timeout)

    async def aclose(self) -> None:
        """Let go of the connections."""
        await self._client.aclose()
