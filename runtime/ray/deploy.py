"""Runs the application on a cluster that is up; `sessile deploy ray` is this."""

from collections.abc import Mapping
from typing import Any

import ray
from pydantic import ValidationError
from ray import serve

from sessile.errors import SettingsError
from sessile.ray.app import build
from sessile.ray.arguments import RayArguments


def deploy(given: Mapping[str, Any], name: str, address: str) -> None:
    """Deploy, or update what runs by that name, replica by replica; returns once it is up.

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
        serve.run(build(arguments), name=name, route_prefix=f"/{name}")
    except RuntimeError as error:
        raise SettingsError(f"{name} did not come up: {error}") from error
    finally:
        ray.shutdown()
