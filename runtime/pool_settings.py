"""The settings of a pool: replicas that run already, or those that `sessile up` starts here.

What the engines' own flags become of them is decided in `sessile.engines.launch`.
"""

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, SecretStr, model_validator

EngineKind = Literal[
    "sglang", "vllm", "llamacpp", "tensorrt-llm", "triton", "tgi", "ollama", "lmstudio", "openai",
    "auto",
]  # fmt: skip
LAUNCHED = ("llamacpp", "sglang", "vllm")
Method = Literal["off", "auto", "eagle3", "standalone", "draft", "mtp", "ngram", "suffix"]

POOL_NAME = r"^[A-Za-z0-9._-]{1,40}$"

_NEEDS_DRAFT = ("eagle3", "standalone", "draft")
_NOT_EMBEDDED = ("gpus", "tensor_parallel", "data_parallel", "memory", "python", "args", "env")
_ONLY_STARTED = (*_NOT_EMBEDDED, "speculation")


class Slice(BaseModel):
    """A part of the settings: frozen, and a key that it does not know is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class SpeculationSettings(Slice):
    """Speculative decoding of the replicas started here, in each engine's own flags."""

    method: Method = Field(
        "off", description="auto: a draft or head next to the model if there is one, else ngram."
    )
    draft_model: str | None = Field(
        None, description="Folder, GGUF file or name of the draft model or head."
    )
    tokens: int | None = Field(
        None, ge=1, le=64, description="Tokens drafted a step; none: what suits the method."
    )

    @model_validator(mode="after")
    def _drafted(self) -> Self:
        if self.method in _NEEDS_DRAFT and self.draft_model is None:
            raise ValueError(f"method {self.method!r} needs draft_model")
        if self.draft_model is not None and self.method in ("off", "ngram", "suffix"):
            raise ValueError(f"method {self.method!r} uses no draft_model")
        return self


class PoolSettings(Slice):
    """Replicas that serve one model: by URL, or so many to start here."""

    engine: EngineKind = Field(
        "llamacpp",
        description="Which engine the replicas run; of those that run already, whichever answers.",
    )
    model: str | None = Field(
        None,
        description="To start: catalogue name or GGUF file (llamacpp), folder or Hugging Face "
        "name (sglang, vllm). By URL: the model to expect.",
    )
    name: str | None = Field(
        None,
        pattern=POOL_NAME,
        description="What a swap knows it by; begins the ids of the replicas given by URL.",
    )
    standby: bool = Field(
        False, description="Its replicas take no session but by a swap to this pool."
    )
    urls: tuple[str, ...] = Field((), description="Replicas that run already.")
    discover: str | None = Field(
        None,
        description="Where replicas that run already are found: file:///PATH.toml, dns://HOST:PORT,"
        " kubernetes://NAMESPACE?selector=LABEL=VALUE&port=PORT or ray://HOST:PORT/APPLICATION.",
    )
    replicas: int | None = Field(
        None, ge=1, le=64, description="Replicas to start here; none: as many as the GPUs carry."
    )
    context_tokens: int | None = Field(
        None, ge=256, description="Longest context.  [llamacpp: 8192, others: the model's]"
    )
    slots: int | None = Field(
        None, ge=1, description="Turns at once on a replica.  [llamacpp: 2, others: the engine's]"
    )
    gpus: int | tuple[int, ...] | None = Field(
        None, description="How many GPUs, or which; 0 for the CPU; none: those that are left."
    )
    tensor_parallel: int = Field(1, ge=1, description="GPUs that one replica is spread over.")
    data_parallel: int = Field(
        1, ge=1, le=64,
        description="Ranks of one server, each on GPUs of its own and a replica of its own.",
    )  # fmt: skip
    memory: float | None = Field(
        None, gt=0, lt=1, description="Share of a GPU's memory for each replica on it."
    )
    python: Path | None = Field(
        None, description="Interpreter of the environment that holds the engine; none: this one's."
    )
    args: tuple[str, ...] = Field((), description="The engine's own flags; they win over ours.")
    env: dict[str, SecretStr] = Field({}, description="Environment variables of the engine.")
    speculation: SpeculationSettings = SpeculationSettings()

    @model_validator(mode="before")
    @classmethod
    def _whichever_answers(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("urls") == []:  # as it was written, not left out
            raise ValueError(
                "the pool has no replica: urls is empty; list some, or leave it out to start some"
            )
        if isinstance(data, dict) and (data.get("urls") or data.get("discover")):
            return {"engine": "auto", **data}
        return data

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if sum((bool(self.urls), self.discover is not None, self.replicas is not None)) > 1:
            raise ValueError(
                "give one of urls (replicas that run), discover (where to find them) and replicas "
                "(how many to start)"
            )
        if self.found:
            if given := self._given(*_ONLY_STARTED):
                raise ValueError(f"{given[0]} is for replicas started here, not for those that run")
        elif self.engine == "llamacpp":
            self._embedded()
        elif self.engine not in LAUNCHED:
            known = ", ".join(LAUNCHED)
            raise ValueError(
                f"the pool has no replica: engine {self.engine!r} is reached by urls or discover; "
                f"those that are started are {known}"
            )
        elif self.model is None:
            raise ValueError(
                f"the pool has no replica: engine {self.engine!r} needs model (a folder or a "
                "name) to start some, or urls or discover"
            )
        if self.standby and self.name is None:
            raise ValueError("a pool on standby needs a name, for a swap to name it")
        return self

    @property
    def found(self) -> bool:
        """Whether its replicas run already, so that none are started here."""
        return bool(self.urls) or self.discover is not None

    @property
    def width(self) -> int:
        """The GPUs of one server."""
        return self.tensor_parallel * self.data_parallel

    def _embedded(self) -> None:
        if given := self._given(*_NOT_EMBEDDED):
            raise ValueError(f"the embedded llamacpp takes no {given[0]}")

    def _given(self, *names: str) -> list[str]:
        """Those of `names` that are not as they are by default."""
        return [n for n in names if getattr(self, n) != type(self).model_fields[n].default]
