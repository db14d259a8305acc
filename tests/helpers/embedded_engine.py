"""The embedded engine, started by itself."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2

from sessile import models
from sessile.engines.supervisor import free_ports


@contextmanager
def serving(*flags: str) -> Iterator[httpx2.Client]:
    """The embedded engine with the default model."""
    model, (port,) = models.pull("smollm2-135m", lambda *_: None), free_ports(1)
    command = [
        sys.executable, "-m", "sessile.engines.embedded", "--model", str(model), "--alias", "m",
        "--port", str(port), "--slots-dir", str(Path.cwd()), *flags,
    ]  # fmt: skip
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert process.stdin is not None and process.stdout is not None
    try:
        assert process.stdout.readline().startswith(b"serving")
        with httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
            yield client
    finally:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()
