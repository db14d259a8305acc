"""The connection to one server: what a URL says of it is used, and a line that fails says so."""

import asyncio
import shutil
import ssl
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from redis.exceptions import AuthenticationError, NoScriptError, ResponseError

from sessile.engines.supervisor import free_ports
from sessile.sessions.redis_wire import Wire, make_wire


@pytest.fixture
async def wire(redis_server: Any) -> AsyncIterator[Wire]:
    """A wire that is connected to a server."""
    wire = make_wire(redis_server.url, 5.0)
    await wire.connect()
    yield wire
    await wire.disconnect()


async def test_replies_come_in_the_order_of_the_commands(wire: Wire) -> None:
    """One that is refused has its error in its place, and the others are done."""
    replies = await wire.exchange(
        [("SET", "a", "1"), ("HGET", "a", "x"), ("EVALSHA", "0" * 40, 0), ("GET", "a")]
    )
    assert (replies[0], replies[3]) == (b"OK", b"1")
    assert type(replies[1]) is ResponseError and "WRONGTYPE" in str(replies[1])
    assert type(replies[2]) is NoScriptError


async def test_a_batch_larger_than_what_the_system_holds_is_sent_before_it_is_said_to_be(
    wire: Wire, redis_server: Any
) -> None:
    """While the server does not read, it is not on its way; with a small one that is told before
    the answer."""
    sent: list[str] = []
    redis_server.pause()
    large = [("SET", "a", b"x" * 32 * 2**20)]
    waiting = asyncio.create_task(wire.exchange(large, lambda: sent.append("large")))
    await asyncio.sleep(0.1)
    assert not sent and not waiting.done()
    redis_server.resume()
    assert await waiting == [b"OK"] and sent == ["large"]
    redis_server.pause()
    waiting = asyncio.create_task(wire.exchange([("GET", "b")], lambda: sent.append("small")))
    await asyncio.sleep(0.1)
    assert sent == ["large", "small"] and not waiting.done()
    redis_server.resume()
    assert await waiting == [None]


async def test_a_url_names_the_user_the_password_and_the_database(redis_server: Any) -> None:
    """As they are given; without them the server refuses, and so does it a wrong one."""
    (port,) = free_ports(1)
    assert "OK" in redis_server.ask(f"CONFIG SET port {port}")
    redis_server.ask("ACL SETUSER agent on >secret ~* +@all")
    redis_server.ask("CONFIG SET requirepass other")
    for login in ("agent:secret", ":other"):
        wire = make_wire(f"redis://{login}@127.0.0.1:{port}/3?client_name=router", 5.0)
        await wire.connect()
        told, name = await wire.exchange([("CLIENT", "INFO"), ("CLIENT", "GETNAME")])
        assert b" db=3 " in told and name == b"router"
        await wire.disconnect()
    for login in ("agent:wrong@", ""):
        wire = make_wire(f"redis://{login}127.0.0.1:{port}/3", 5.0)
        with pytest.raises((AuthenticationError, ResponseError)):
            await wire.connect()
        await wire.disconnect()


async def test_a_server_that_goes_fails_what_waits_and_what_comes(
    wire: Wire, redis_server: Any
) -> None:
    """At once, and not by a time-out."""
    redis_server.pause()
    waiting = asyncio.create_task(wire.exchange([("PING",)]))
    await asyncio.sleep(0.05)
    redis_server.kill()
    for work in (waiting, wire.exchange([("PING",)])):
        with pytest.raises(ConnectionError):
            await work


async def test_a_reply_that_does_not_come_in_time(redis_server: Any) -> None:
    """Is waited for no longer; the wire is then good for nothing until it connects again."""
    wire = make_wire(redis_server.url, 0.2)
    await wire.connect()
    redis_server.pause()
    with pytest.raises(TimeoutError):
        await wire.exchange([("GET", "a")])
    redis_server.resume()
    await wire.disconnect()
    with pytest.raises(ConnectionError):
        await wire.exchange([("GET", "a")])
    await wire.connect()
    assert await wire.exchange([("SET", "a", "1"), ("GET", "a")]) == [b"OK", b"1"]
    await wire.disconnect()


async def test_what_speaks_no_redis_is_told_from_it() -> None:
    """A port where something else answers fails at the first reply."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(100)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await reader.read()
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        wire = make_wire(f"redis://127.0.0.1:{port}", 5.0)
        await wire.connect()
        with pytest.raises(ConnectionError, match="no reply"):
            await wire.exchange([("PING",)])
        await wire.disconnect()


@pytest.fixture
def certified(tmp_path: Path) -> tuple[Path, Path]:
    """A certificate of 127.0.0.1, its own authority, and its key."""
    if (openssl := shutil.which("openssl")) is None:
        pytest.skip("no openssl here to make a certificate with")
    certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    command = [
        openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=a",
        "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate),
    ]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True)
    return certificate, key


async def test_a_server_behind_tls(certified: tuple[Path, Path]) -> None:
    """Its certificate is checked against the authority that the URL names."""
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(*certified)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"PING\r\n")
        writer.write(b"+PONG\r\n")
        await reader.read()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0, ssl=tls)
    async with server:
        at = f"rediss://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        wire = make_wire(f"{at}?ssl_ca_certs={certified[0]}", 5.0)
        await wire.connect()
        sent: list[bool] = []
        assert await wire.exchange([("PING",)], lambda: sent.append(True)) == [b"PONG"] and sent
        await wire.disconnect()
        with pytest.raises(ssl.SSLCertVerificationError):
            await make_wire(at, 5.0).connect()
