"""A slow line whose TCP is the system's own, for benchmarks: within a block, this process is in a
network namespace (Linux, root) from which a server is a line of a given round trip and rate away.

Two TUN devices are its ends. Another process carries packets from one to the other: each takes its
time by the line's rate, behind those before it in its direction, and arrives half a round trip
later. At the far end it hands connections on to the server, which may listen on loopback only.
Nothing is lost on the line.
"""

import asyncio
import ctypes
import fcntl
import os
import struct
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from sessile.errors import SettingsError
from sessile.lab.link import Link

_CLONE_NEWNET = 0x40000000
_TUNSETIFF = 0x400454CA
_IFF_TUN, _IFF_NO_PI = 0x0001, 0x1000
_MOST_BYTES = 65_536
_HERE, _THERE = "10.211.0.2", "10.211.0.1"  # in the namespace, and where it was parted from


@asynccontextmanager
async def far_away(
    target: tuple[str, int], *, round_trip_s: float, bits_per_s: float | None
) -> AsyncIterator[tuple[str, int]]:
    """Where `target` is reached over the line, by sockets that the main thread, and threads that it
    starts, open within the block. Raises `SettingsError` where no such line can be made."""
    system = ctypes.CDLL(None, use_errno=True)
    home = os.open("/proc/self/ns/net", os.O_RDONLY)
    carrier = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "sessile.lab.namespace", target[0], str(target[1]),
        str(round_trip_s), str(bits_per_s or 0.0),
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert carrier.stdin and carrier.stdout and carrier.stderr
    try:
        if system.unshare(_CLONE_NEWNET) != 0:
            why = os.strerror(ctypes.get_errno())
            raise SettingsError(f"a line between network namespaces takes root on Linux: {why}")
        carrier.stdin.write(f"{os.getpid()}\n".encode())
        if not (told := await carrier.stdout.readline()):
            words = (await carrier.stderr.read()).decode().strip().rpartition("\n")[2]
            raise SettingsError(f"no line between network namespaces: {words}")
        device, port = told.decode().split()
        _ip("link", "set", "lo", "up")
        _up(device, _HERE)
        yield _THERE, int(port)
    finally:
        system.setns(home, _CLONE_NEWNET)
        os.close(home)
        carrier.stdin.close()
        await carrier.wait()


class _Direction:
    """One way of the line: what its end sends comes out of the other."""

    def __init__(self, from_fd: int, to_fd: int, delay_s: float, bits_per_s: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._from, self._to = from_fd, to_fd
        self._delay_s = delay_s
        self._s_per_byte = 8 / bits_per_s if bits_per_s else 0.0
        self._free_at = 0.0
        self._loop.add_reader(from_fd, self._take)

    def _take(self) -> None:
        packet = os.read(self._from, _MOST_BYTES)
        self._free_at = max(self._loop.time(), self._free_at) + len(packet) * self._s_per_byte
        self._loop.call_at(self._free_at + self._delay_s, os.write, self._to, packet)


async def _carry(target: tuple[str, int], round_trip_s: float, bits_per_s: float) -> None:
    """Make the line, tell the end that is the other's, and carry until standard input ends."""
    loop = asyncio.get_running_loop()
    far, near = f"sessile{os.getpid()}a", f"sessile{os.getpid()}b"
    fds = _tun(far), _tun(near)
    pid = (await loop.run_in_executor(None, sys.stdin.readline)).strip()
    _ip("link", "set", near, "netns", pid)
    _up(far, _THERE)
    for one, other in (fds, fds[::-1]):
        _Direction(one, other, round_trip_s / 2, bits_per_s)
    server = await asyncio.start_server(Link(target).serve, _THERE, 0)
    print(near, server.sockets[0].getsockname()[1], flush=True)
    await loop.run_in_executor(None, sys.stdin.read)


def _tun(name: str) -> int:
    """A new TUN device, gone with its descriptor."""
    fd = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(fd, _TUNSETIFF, struct.pack("16sH", name.encode(), _IFF_TUN | _IFF_NO_PI))
    return fd


def _up(device: str, address: str) -> None:
    _ip("addr", "add", f"{address}/30", "dev", device)
    _ip("link", "set", device, "up")


def _ip(*words: str) -> None:
    try:
        done = subprocess.run(["ip", *words], capture_output=True, text=True)
    except FileNotFoundError as error:
        raise SettingsError("the command `ip` is not there: install iproute2") from error
    if done.returncode != 0:
        raise SettingsError(f"ip {' '.join(words)}: {done.stderr.strip()}")


if __name__ == "__main__":
    host, port, seconds, bits = sys.argv[1:]
    asyncio.run(_carry((host, int(port)), float(seconds), float(bits)))
