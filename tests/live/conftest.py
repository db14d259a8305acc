"""Real replicas, named by the environment, behind a real router in a process of its own."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import httpx2
import pytest
from openai import OpenAI

from sessile.engines.kinds import engine
from sessile.router.engine import Load, Reply

_KINDS = ("sglang", "vllm", "llamacpp")


def _gate() -> Any:
    """`gate.py` beside this file: the import mode puts no test folder on the path."""
    spec = spec_from_file_location("gate", Path(__file__).with_name("gate.py"))
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.Gate


class RealReplica:
    """One running engine: `gate` is what the router sees, `load` asks the engine itself."""

    def __init__(self, kind: str, url: str) -> None:
        self.engine = engine(kind)
        self.gate = _gate()(url)
        self._http = httpx2.Client(base_url=url, timeout=30)

    def load(self) -> Load:
        """What the engine says of itself now, past the router."""
        told = [self._http.request(c.method, c.path) for c in self.engine.load_calls()]
        return self.engine.read_load(
            tuple(Reply(r.status_code, r.content) for r in told), time.time()
        )

    def close(self) -> None:
        """Leave the engine as it was."""
        self.gate.shut()
        self._http.close()


class Site:
    """A router process and the replicas behind it, by their ids."""

    def __init__(self, kind: str, url: str, replicas: dict[str, RealReplica]) -> None:
        self.kind = kind
        self.url = url
        self.replicas = replicas
        self.http = httpx2.Client(base_url=url, timeout=60)
        self._clients: list[OpenAI] = []
        self.model = self.http.get(
            "/v1/models", headers={"authorization": "Bearer key-one"}
        ).json()["data"][0]["id"]

    def client(self, key: str = "none", **options: Any) -> OpenAI:
        """The official SDK's client, which must not repeat what fails."""
        client = OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, **options)
        self._clients.append(client)
        return client

    def close(self) -> None:
        """Close what the tests opened."""
        for client in self._clients:
            client.close()
        self.http.close()

    def receipt(self, turn: str) -> dict[str, Any]:
        """What the router says of a turn that has ended."""
        path = f"/sessile/v1/turns/{turn}/receipt"
        return eventually(
            lambda: answer.json() if (answer := self.http.get(path)).status_code == 200 else None
        )

    def ready(self) -> int:
        """How many replicas the router finds ready."""
        return int(self.http.get("/ready").json()["replicas"]["ready"])

    def running(self) -> int:
        """How many requests run in all engines, by their own count."""
        return sum(r.load().running or 0 for r in self.replicas.values())


def eventually(look: Callable[[], Any], within_s: float = 10.0) -> Any:
    """What `look` returns, as soon as that is something; fails after `within_s`."""
    deadline = time.monotonic() + within_s
    while not (found := look()):
        assert time.monotonic() < deadline, f"not within {within_s} s"
        time.sleep(0.05)
    return found


@pytest.fixture(scope="session", params=_KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    """Each engine whose replicas the environment names."""
    return str(request.param)


@pytest.fixture(scope="session")
def replica_urls(kind: str) -> list[str]:
    """The base URLs of two running replicas of that engine."""
    name = f"SESSILE_LIVE_{kind.upper()}"
    urls = [url for url in os.environ.get(name, "").split(",") if url]
    if len(urls) < 2:
        pytest.skip(f"{name} does not name two running replicas, as URL,URL")
    return urls


@pytest.fixture(scope="session")
def site(
    kind: str, replica_urls: list[str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Site]:
    """An open router before two replicas."""
    with serving(kind, replica_urls[:2], tmp_path_factory.mktemp("site") / "log") as site:
        yield site


@pytest.fixture
def locked_site(kind: str, replica_urls: list[str], tmp_path: Path) -> Iterator[Site]:
    """A router of two tenants, `key-one` and `key-two`, before one replica."""
    keys = "one=key-one,two=key-two"
    with serving(kind, replica_urls[:1], tmp_path / "log", SESSILE_AUTH__API_KEYS=keys) as site:
        yield site


@contextmanager
def serving(kind: str, urls: list[str], log: Path, **variables: str) -> Iterator[Site]:
    """`sessile serve` before these replicas, until the block ends."""
    with ExitStack() as stack:
        replicas = [RealReplica(kind, url) for url in urls]
        for replica in replicas:
            stack.callback(replica.close)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        url = f"http://127.0.0.1:{port}"
        options = [o for r in replicas for o in ("--replica", f"{kind}={r.gate.url}")]
        out = stack.enter_context(log.open("wb"))
        process = subprocess.Popen(
            [str(Path(sys.executable).with_name("sessile")), "serve", *options]
            + ["--port", str(port)],
            stdout=out,
            stderr=subprocess.STDOUT,
            env=_without_ours(os.environ) | variables,
        )
        stack.callback(_stop, process)

        def is_ready() -> bool:
            assert process.poll() is None, log.read_text()
            try:
                told = httpx2.get(f"{url}/ready").json()
            except httpx2.TransportError:
                return False
            return bool(told["replicas"]["ready"] == len(replicas))

        eventually(is_ready, 60)
        site = Site(kind, url, {f"{kind}-{n}": r for n, r in enumerate(replicas)})
        stack.callback(site.close)
        yield site


def _without_ours(environment: Mapping[str, str]) -> dict[str, str]:
    """A router takes a variable of its prefix that is no setting for a mistake."""
    return {k: v for k, v in environment.items() if not k.startswith("SESSILE_LIVE_")}


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGINT)
    try:
        process.wait(30)
    finally:
        process.kill()
        process.wait()
