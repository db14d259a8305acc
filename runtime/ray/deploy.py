"""Runs the application on a cluster that is up; `sessile deploy ray` is this."""

import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import httpx2
import ray
from pydantic import ValidationError
from ray import serve

from sessile.errors import SettingsError
from sessile.ray.app import build
from sessile.ray.arguments import RayArguments

_WILDCARDS = ("0.0.0.0", "::")
_FOUND_S = 15.0  # proxies hear of a new application within a second or two
_LOOK_S = 2.0
_AGAIN_S = 0.2


def deploy(given: Mapping[str, Any], name: str, address: str, host: str, port: int) -> str:
    """Deploy, or update what runs by that name, replica by replica; returns once it is up, with the
    source by which routers find it: `host` and `port` are where Ray Serve's proxies listen.

    Raises `SettingsError`.
    """
    try:
        arguments = RayArguments(**given)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "ray"
        raise SettingsError(f"{where}: {first['msg'].removeprefix('Value error, ')}") from error
    try:
        ray.init(address, log_to_driver=False, configure_logging=False)
    except ConnectionError as error:
        raise SettingsError(
            f"no Ray cluster at {address!r}: start one with `ray start --head`, or give its address"
        ) from error
    try:
        serve.start(http_options={"host": host, "port": port})
        serve.run(build(arguments), name=name, route_prefix=f"/{name}")
        nodes = [node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]]
        return _found(nodes if host in _WILDCARDS else [host], port, name)
    except RuntimeError as error:
        raise SettingsError(f"{name} did not come up: {error}") from error
    finally:
        ray.shutdown()


def _found(hosts: Sequence[str], port: int, name: str) -> str:
    """The source of the application at the first of `hosts` whose proxy knows it. NOTE: Ray Serve
    leaves the options of a start aside where it runs already, and says so to nobody."""
    until = time.monotonic() + _FOUND_S
    while time.monotonic() < until:
        for host in hosts:
            at = f"{f'[{host}]' if ':' in host else host}:{port}/{name}"
            with suppress(httpx2.HTTPError):
                if httpx2.get(f"http://{at}", trust_env=False, timeout=_LOOK_S).is_success:
                    return f"ray://{at}"
        time.sleep(_AGAIN_S)
    raise SettingsError(
        f"{name} is up, but no proxy answers for it at {', '.join(hosts)}, port {port}: Ray Serve "
        "ran there before, and listens where it was told then; give that as --host and --port, or "
        "`serve shutdown` first"
    )
