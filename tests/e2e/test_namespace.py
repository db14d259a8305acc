"""A line between network namespaces, where this system can have one."""

import asyncio
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or not Path("/dev/net/tun").exists() or shutil.which("ip") is None,
    reason="takes root, TUN devices and iproute2",
)

THERE_AND_BACK = """
import asyncio, sys, time
from sessile.lab.namespace import far_away

async def main():
    async with far_away(("127.0.0.1", int(sys.argv[1])), round_trip_s=0.1, bits_per_s=1e6) as far:
        began = time.monotonic()
        reader, writer = await asyncio.open_connection(*far)
        writer.write(bytes(12_500) + b"\\n")
        assert await reader.readline() == b"heard\\n"
        print(time.monotonic() - began)
        writer.close()
    await asyncio.open_connection("127.0.0.1", int(sys.argv[1]))  # home again

asyncio.run(main())
"""


async def test_a_server_on_loopback_is_a_line_away() -> None:
    """A connection and a request are two round trips, and a tenth of a megabit takes its time."""

    async def hear(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if await reader.readline():
            writer.write(b"heard\n")
            await writer.drain()
        writer.close()

    async with await asyncio.start_server(hear, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        command = [sys.executable, "-c", THERE_AND_BACK, str(port)]
        done = await asyncio.to_thread(
            subprocess.run, command, capture_output=True, text=True, timeout=60
        )
    if "network namespaces" in done.stderr:
        pytest.skip(done.stderr.strip().rpartition("\n")[2])
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) > 0.3
