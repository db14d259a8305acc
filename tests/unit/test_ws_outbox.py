"""What a WebSocket sends by: at once where the client reads, in order where it has to wait."""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from sessile.api.ws_outbox import Outbox, SlowReader


class _Client:
    """The server's side of a client: what it was sent, and whether it reads."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.writes = 0
        self.reads = asyncio.Event()
        self.reads.set()

    @property
    def roomy(self) -> bool:
        return self.reads.is_set()

    def put(self, texts: Sequence[bytes]) -> None:
        self.told += [text.decode() for text in texts]
        self.writes += 1

    async def send(self, message: Any) -> None:
        await self.reads.wait()
        self.told.append(message["text"])


@pytest.fixture
def client() -> _Client:
    return _Client()


async def test_a_client_that_reads_is_sent_frames_at_once(client: _Client) -> None:
    """Those of one call in one write, without a turn of the loop."""
    outbox = Outbox(client.send, 5.0, client)
    assert outbox.ready
    with pytest.raises(StopIteration):
        outbox.send_all([b"a", b"b"]).send(None)
    assert client.told == ["a", "b"] and client.writes == 1


async def test_what_waits_goes_first(client: _Client) -> None:
    """Nobody overtakes what was to be sent while the client did not read."""
    outbox = Outbox(client.send, 5.0, client)
    client.reads.clear()
    assert not outbox.ready
    waiting = asyncio.create_task(outbox.send_all([b"a", b"b"]))
    await asyncio.sleep(0)
    client.reads.set()
    assert not outbox.ready
    await outbox.send_all([b"c"])
    await waiting
    assert client.told == ["a", "b", "c"] and outbox.ready


async def test_a_client_that_does_not_read_is_given_up(client: _Client) -> None:
    """After the time-out, and not before it has been waited for."""
    client.reads.clear()
    with pytest.raises(SlowReader):
        await Outbox(client.send, 0.01, client).send_all([b"a"])
    assert client.told == []


async def test_any_server_will_do(client: _Client) -> None:
    """One that has nothing but `send` is sent through by that."""
    outbox = Outbox(client.send, 5.0)
    assert not outbox.ready
    await outbox.send_all([b"a"])
    assert client.told == ["a"] and client.writes == 0


async def test_nothing_is_sent_once_it_is_closed(client: _Client) -> None:
    """Neither with nor without waiting."""
    outbox = Outbox(client.send, 5.0, client)
    outbox.closed = True
    with pytest.raises(ConnectionResetError):
        await outbox.send_all([b"a"])
    with pytest.raises(ConnectionResetError):
        outbox.put([b"a"])
    assert not outbox.ready and client.told == []
