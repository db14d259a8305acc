"""Every setting of Sessile, its unit and its default: one frozen tree, read once.

Precedence: command line over environment (`SESSILE_`, nested by `__`) over the TOML file over
the defaults here. An unknown key is an error, wherever it stands. Slices of the tree are passed
down; nothing below `app` and `cli` sees the whole of it.
"""

from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    Field,
    SecretStr,
    StringConstraints,
    model_validator,
)
from pydantic_settings import BaseSettings, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict

from sessile.pool_settings import PoolSettings, Slice

PolicyName = Literal[
    "session", "sticky", "round_robin", "least_loaded", "power_of_two", "rendezvous"
]


ADAPTER_NAME = r"^[A-Za-z0-9][A-Za-z0-9._/-]{0,127}$"
"""No colon: SGLang takes what follows one for the adapter of another model."""


class ServerSettings(Slice):
    """Where the router listens, and what it accepts there."""

    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    max_body_bytes: int = Field(32 * 2**20, ge=1024, description="Largest request body.")
    drain_timeout_s: float = Field(
        30.0, ge=0, description="How long a stopping router lets running turns finish."
    )
    cors_origins: tuple[str, ...] = Field(
        (), description="Origins of browser pages that may call; the router's own always may."
    )


class AuthSettings(Slice):
    """Who may call. Without keys everybody may, and only on loopback."""

    api_keys: Annotated[tuple[SecretStr, ...], NoDecode] = Field(
        (),
        description="Accepted keys, by comma; NAME=KEY puts a key's sessions under tenant NAME.",
    )
    allow_open: bool = Field(
        False, description="Serve without keys on an address that is not loopback."
    )

    @model_validator(mode="before")
    @classmethod
    def _split(cls, data: Any) -> Any:
        if isinstance(data, dict) and isinstance(data.get("api_keys"), str):
            keys = tuple(key.strip() for key in data["api_keys"].split(",") if key.strip())
            return {**data, "api_keys": keys}
        return data


class StoreSettings(Slice):
    """Where sessions are kept, and how long the router waits for that place."""

    url: str | None = Field(
        None,
        description="redis://, rediss://, unix:// or redis-cluster://; none: this process's memory",
    )
    timeout_s: float = Field(0.25, gt=0, description="Longest wait for one round trip.")
    retry_after_s: float = Field(
        1.0, gt=0, description="After a failure, how long turns go on without asking the store."
    )


class SessionSettings(Slice):
    """How long the facts of a session live."""

    ttl_s: float = Field(24 * 3600.0, gt=0, description="Sessions, from their last turn.")
    binding_ttl_s: float = Field(3600.0, gt=0, description="Bindings, from the last turn.")
    turn_ttl_s: float = Field(24 * 3600.0, gt=0, description="Stored turns and receipts.")
    idempotency_ttl_s: float = Field(600.0, gt=0, description="Answers kept for a repeated key.")
    lock_ttl_s: float = Field(600.0, gt=0, description="A turn lock whose router has died.")
    lock_wait_s: float = Field(
        60.0, ge=0, description="How long a stateful turn waits for the one before it, then 409."
    )
    confirm_s: float = Field(
        5.0, ge=0, description="How long a binding the store confirmed is used without asking."
    )


class EventSettings(Slice):
    """What is kept of the events of a stored turn, so that its stream can be taken up again."""

    ttl_s: float = Field(
        600.0, gt=0,
        description="A turn's events, from the last of them; no shorter than idempotency_ttl_s.",
    )  # fmt: skip
    lease_s: float = Field(
        4.0, ge=0.5, description="A router that is silent for so long loses its turns to another."
    )
    most_bytes: int = Field(
        8 * 2**20, ge=2**16, description="Of one turn; the oldest events go first."
    )
    most_events: int = Field(50_000, ge=1000, description="Of one turn, likewise.")


class RouterSettings(Slice):
    """How a replica is chosen and watched."""

    policy: PolicyName = Field("session", description="How a turn's replica is chosen.")
    margin: float = Field(
        0.5,
        ge=0,
        description="A bound replica is left when that saves this share of a fresh prefill.",
    )
    max_adapters: int = Field(
        8,
        ge=1,
        description="LoRA adapters on a replica that does not say how many it holds.",
    )
    kv_fill: float = Field(
        0.95, gt=0, le=1, description="Share of a replica's KV memory kept for live sessions."
    )
    most_queued: int = Field(
        512, ge=0, description="Turns that may wait for KV memory; more are told to come back."
    )
    tenant_weights: dict[str, float] = Field(
        {}, description="Shares of the queue, by tenant; 1 for one that is not named."
    )
    gate_slack: int = Field(
        2,
        ge=0,
        description="Policy sticky: its replica is left when so many queue there, none elsewhere.",
    )
    probe_interval_s: float = Field(1.0, gt=0, description="Between two looks at a replica.")
    probe_timeout_s: float = Field(5.0, gt=0, description="A look that takes longer has failed.")
    connect_timeout_s: float = Field(3.0, gt=0, description="To open a connection to a replica.")
    first_byte_timeout_s: float = Field(
        600.0, gt=0, description="From the request to the first byte of the answer."
    )
    idle_timeout_s: float = Field(120.0, gt=0, description="Between two bytes of an answer.")
    silent_timeout_s: float = Field(
        30.0,
        gt=0,
        description="A healthy replica that answers none of its turns for so long (twice that, if "
        "none is streamed) is taken out. Halfway it is tried with a turn of one token: if that is "
        "answered, it stays.",
    )


class WebSocketSettings(Slice):
    """Limits of `/v1/responses` as a WebSocket."""

    max_message_bytes: int = Field(16 * 2**20, ge=1024, description="Largest frame from a client.")
    max_connections: int = Field(10_000, ge=1, description="Open WebSockets, all clients together.")
    max_lanes: int = Field(16, ge=1, description="Lanes of one connection that work at once.")
    max_age_s: float = Field(
        3600.0, gt=0, description="A connection that is older begins no turns, and is closed."
    )
    ping_interval_s: float = Field(20.0, gt=0, description="Between two pings.")
    ping_timeout_s: float = Field(20.0, gt=0, description="A client that answers no ping is gone.")
    send_timeout_s: float = Field(
        30.0, gt=0, description="A client that reads nothing for so long is closed with 1013."
    )


class McpSettings(Slice):
    """The MCP servers that clients may have the router call."""

    hosts: tuple[str, ...] = Field(
        (),
        description="Their host names, * for any; none: any on an open loopback router, else none.",
    )
    timeout_s: float = Field(60.0, gt=0, description="Longest list of tools, and longest call.")


class LogSettings(Slice):
    """What is written to standard error."""

    format: Literal["console", "json"] = Field("console", description="For people or machines.")
    level: Literal["debug", "info", "warning", "error"] = Field("info", description="From here up.")


class AdapterSettings(Slice):
    """A LoRA adapter that replicas of its base load when a turn asks for it by name."""

    name: Annotated[str, StringConstraints(pattern=ADAPTER_NAME)]
    base: str = Field(min_length=1, description="The model that it is for, as replicas name it.")
    path: str = Field(min_length=1, description="Where the engines find it.")


class ReleaseSettings(Slice):
    """A swap or an A/B split that a router begins by itself where there is none of the model yet;
    what was commanded since then holds."""

    model: str = Field(min_length=1, description="What clients ask for: a model or an alias.")
    to: str = Field(
        min_length=1, description="A model, a pool or ENGINE-VERSION; MODEL@POOL for both."
    )
    percent: float = Field(100.0, ge=0, le=100, description="Of the new sessions.")


def _one_each(releases: tuple[ReleaseSettings, ...]) -> tuple[ReleaseSettings, ...]:
    if len({release.model for release in releases}) != len(releases):
        raise ValueError("two releases are of the same model")
    return releases


def _unique_names(adapters: tuple[AdapterSettings, ...]) -> tuple[AdapterSettings, ...]:
    if len({adapter.name for adapter in adapters}) != len(adapters):
        raise ValueError("two adapters have the same name")
    return adapters


def _unique(given: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(given)) != len(given):
        raise ValueError("one is listed twice")
    return given


def _apart(pools: tuple[PoolSettings, ...]) -> tuple[PoolSettings, ...]:
    """Refuse pools that could not be told apart."""
    for what, found in (
        ("two pools have the name", [pool.name for pool in pools if pool.name]),
        ("two pools discover", [pool.discover for pool in pools if pool.discover]),
        ("a replica is listed twice:", [url for pool in pools for url in pool.urls]),
    ):
        twice = next((one for one in found if found.count(one) > 1), None)
        if twice is not None:
            raise ValueError(f"{what} {twice}")
    return pools


def _one_step(aliases: dict[str, str]) -> dict[str, str]:
    """Refuse an alias of an alias: what a name means is to be seen in one line."""
    for alias, model in aliases.items():
        if model in aliases:
            raise ValueError(f"{alias!r} names {model!r}, which is an alias too; name a model")
    return aliases


class Settings(BaseSettings):
    """The whole tree. Built by `settings_load.load`."""

    model_config = SettingsConfigDict(
        extra="forbid",
        frozen=True,
        env_prefix="SESSILE_",
        env_nested_delimiter="__",
    )

    server: ServerSettings = ServerSettings()
    auth: AuthSettings = AuthSettings()
    store: StoreSettings = StoreSettings()
    sessions: SessionSettings = SessionSettings()
    events: EventSettings = EventSettings()
    router: RouterSettings = RouterSettings()
    websocket: WebSocketSettings = WebSocketSettings()
    mcp: McpSettings = McpSettings()
    log: LogSettings = LogSettings()
    pool: Annotated[tuple[PoolSettings, ...], AfterValidator(_apart)] = ()
    adapter: Annotated[tuple[AdapterSettings, ...], AfterValidator(_unique_names)] = ()
    release: Annotated[tuple[ReleaseSettings, ...], AfterValidator(_one_each)] = ()
    replica: Annotated[tuple[str, ...], AfterValidator(_unique)] = Field(
        (), description="Replicas by URL or ENGINE=URL, beside those of the pools."
    )
    discover: Annotated[tuple[str, ...], AfterValidator(_unique)] = Field(
        (),
        description="Where more replicas are found, by [ENGINE=]SOURCE; see pool.discover.",
    )
    aliases: Annotated[dict[str, str], AfterValidator(_one_step)] = Field(
        {}, description="Other names of models: a request for one is served by the model it names."
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Environment first; `load` passes the TOML file as the arguments under it."""
        return env_settings, init_settings
