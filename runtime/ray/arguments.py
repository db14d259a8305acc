"""What a Ray Serve application of Sessile is made of: its replicas, and what is aimed at."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from sessile.ray.autoscale import Goals


class RayArguments(BaseModel):
    """The `args` of the application in a Serve config, and the flags of `sessile deploy ray`.

    `command` starts an engine where it is not the embedded one: a list of words in which {model},
    {host} and {port} are filled in; it must listen there and end with SIGTERM.
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
    min_replicas: int = Field(1, ge=0)
    max_replicas: int = Field(1, ge=1)
    wait_s: float = Field(1.0, gt=0, description="A replica is added where turns wait longer,")
    ttft_s: float = Field(5.0, gt=0, description="or first tokens take longer than this.")
    up_after_s: float = Field(5.0, ge=0, description="How long that must last.")
    down_after_s: float = Field(120.0, ge=0, description="Likewise, until one is taken away.")
    zero_after_s: float = Field(600.0, ge=0, description="Idle so long, the last one goes.")

    def goals(self) -> dict[str, Any]:
        """The keywords of `Goals`."""
        named = {name: getattr(self, name) for name in type(self).model_fields
                 if name in Goals.__struct_fields__}  # fmt: skip
        return {**named, "least": self.min_replicas, "most": self.max_replicas}
