"""What a Ray Serve application of Sessile is made of: its replicas, and what is aimed at."""

import re
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from sessile import models
from sessile.engines.kinds import engine
from sessile.errors import InvalidRequest
from sessile.ray.autoscale import Goals

_FILLED = ("model", "host", "port", "events_port", "replay_port")
_NAME = re.compile(r"\{(\w+)\}")  # other braces are JSON's


class RayArguments(BaseModel):
    """The `args` of the application in a Serve config, and the flags of `sessile deploy ray`.

    `command` starts an engine where it is not the embedded one: a list of words in which {model},
    {host}, {port}, {events_port} and {replay_port} are filled in. It must listen at {port} and end
    with SIGTERM; routers ask it where its KV events are, so the two others are told to it alone.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    model: str = "smollm2-135m"
    engine: str = "llamacpp"
    command: tuple[str, ...] = ()
    cpus: float = Field(1.0, ge=0, description="Of a replica, as Ray counts them.")
    gpus: float = Field(0.0, ge=0, description="Of a replica: what tensor parallelism takes.")
    threads: int = Field(1, ge=1, description="Of an embedded replica.")
    context_tokens: int = Field(8192, ge=256)
    slots: int = Field(2, ge=1, description="Turns at once at an embedded replica.")
    kv_folder: str | None = Field(
        None, description="Where KV memory is saved, if all routers and replicas share a folder."
    )
    ready_s: float = Field(600.0, gt=0, description="Longest that an engine may take to come up.")
    drain_s: float = Field(120.0, ge=0, description="Longest that a replica waits for its turns.")
    surge_percent: int = Field(
        0, ge=0, le=100, description="More replicas while a version is replaced; 0: old ones first."
    )
    min_replicas: int = Field(1, ge=0)
    max_replicas: int = Field(1, ge=1)
    wait_s: float = Field(1.0, gt=0, description="A replica is added where turns wait longer,")
    ttft_s: float = Field(5.0, gt=0, description="or first tokens take longer than this.")
    up_after_s: float = Field(5.0, ge=0, description="How long that must last.")
    down_after_s: float = Field(120.0, ge=0, description="Likewise, until one is taken away.")
    zero_after_s: float = Field(600.0, ge=0, description="Idle so long, the last one goes.")

    @model_validator(mode="after")
    def _starts(self) -> Self:
        if self.max_replicas < self.min_replicas:
            raise ValueError(f"max_replicas {self.max_replicas} is under min_replicas")
        if self.engine != "llamacpp" and not self.command:
            raise ValueError(f"give the command that starts {self.engine!r}")
        for name in _NAME.findall(" ".join(self.command)):
            if name not in _FILLED:
                known = ", ".join(f"{{{each}}}" for each in _FILLED)
                raise ValueError(f"the command has {{{name}}}; filled in are {known}")
        _known(self.engine)
        return self

    def filled(self, host: str, port: int, events_port: int, replay_port: int) -> list[str]:
        """The command of one replica."""
        values = dict(zip(_FILLED, (self.model, host, port, events_port, replay_port), strict=True))
        return [_NAME.sub(lambda found: str(values[found[1]]), word) for word in self.command]

    def goals(self) -> dict[str, Any]:
        """The keywords of `Goals`."""
        named = {name: getattr(self, name) for name in type(self).model_fields
                 if name in Goals.__struct_fields__}  # fmt: skip
        return {**named, "least": self.min_replicas, "most": self.max_replicas}


def _known(kind: str) -> None:
    try:
        engine(kind)
    except InvalidRequest as error:
        raise ValueError(error.message) from error


def served(arguments: RayArguments) -> str:
    """The name that clients call the model by. Raises `SettingsError` for one that is unknown."""
    return arguments.model if arguments.command else models.resolve(arguments.model)[0]
