"""vLLM's OpenAI server (0.32): load and incarnation from its metrics.

`/load` is not used: it counts only under `--enable-server-load-tracking`, and says 0 otherwise.
"""

from collections.abc import Mapping
from typing import Any

import msgspec

from sessile.engines.base import (
    OpenAIShaped,
    absent,
    continued,
    count,
    document,
    page,
    reachable,
    since,
    tokenize_call,
)
from sessile.engines.messages import PATH, keeps
from sessile.engines.samples import Samples
from sessile.errors import ReplicaRefused
from sessile.router.adapters import Adapter
from sessile.router.engine import Call, FeedSource, FollowUps, Identity, Load, Own, Reply

_STARTED = "process_start_time_seconds"
_RUNNING = "vllm:num_requests_running"
_WAITING = "vllm:num_requests_waiting"
_USED = "vllm:kv_cache_usage_perc"  # NOTE: a fraction of 1, whatever its name says
_CONFIG = "vllm:cache_config_info"
_SLEEP = "vllm:engine_sleep_state"
_LORA = "vllm:lora_requests_info"
_SEVERAL = (
    "it tells no time of its start, as with several API servers, so a restart may go unseen: start "
    "it with --api-server-count 1"
)
_SEEN = (0, 32)  # to take priorities however it was started, and all of a turn beside a message
_DRAFTS = "vllm:spec_decode_num_drafts_total"
_ACCEPTED = "vllm:spec_decode_num_accepted_tokens_total"
_HEADERS = {
    "request_id": b"x-request-id",
    "session_id": b"x-session-id",
    "priority": b"x-vllm-priority",
}
_NO_ROUTE = b'{"detail":"Not Found"}'


class VLLM(OpenAIShaped):
    """The adapter of `vllm=URL`; closing the connection frees a request there in 0.1 s."""

    kind = "vllm"
    loads_adapters = True

    def identity_calls(self) -> tuple[Call, ...]:
        return (Call("GET", "/v1/models"), Call("GET", "/version"), Call("GET", "/metrics"))

    def read_identity(self, replies: tuple[Reply, ...]) -> Identity:
        models = super().read_identity(replies[:1])
        version = document(replies[1], "/version").get("version")
        names = (_STARTED, _RUNNING, _CONFIG, _SLEEP, _LORA, _DRAFTS, _ACCEPTED)
        metrics = Samples(replies[2], "/metrics", names)
        _refuse_asleep(metrics)
        started = metrics.total(_STARTED) if len(metrics.all(_STARTED)) == 1 else None
        return Identity(
            models=models.models,
            adapters=models.adapters,
            most_adapters=_most_adapters(metrics),
            context_tokens=models.context_tokens,
            ranks=len(_engines(metrics)) or 1,
            version=version if isinstance(version, str) else None,
            incarnation=None if started is None else f"{started:.2f}",
            orders="low_first" if since(version, *_SEEN) else None,
            warning=_SEVERAL if started is None else None,
            speculates=metrics.total(_DRAFTS) is not None,
            acceptance_length=_acceptance(metrics),
        )

    def health_call(self) -> Call:
        return Call("GET", "/health")

    def load_calls(self) -> tuple[Call, ...]:
        return (Call("GET", "/metrics"),)

    def read_load(self, replies: tuple[Reply, ...], now: float) -> Load:
        metrics = Samples(replies[0], "/metrics", (_RUNNING, _WAITING, _USED, _CONFIG, _SLEEP))
        _refuse_asleep(metrics)
        capacity = _capacities(metrics)
        if self.rank is not None:
            engines = _engines(metrics)
            if self.rank >= len(engines):
                raise ReplicaRefused(f"its /metrics has no engine for its rank {self.rank}")
            metrics.keep("engine", engines[self.rank])
            capacity = {engines[self.rank]: capacity.get(engines[self.rank])}
        known = [tokens for tokens in capacity.values() if tokens is not None]
        used = [
            round(sample.value * tokens)
            for sample in metrics.all(_USED)
            if (tokens := capacity.get(sample.labels.get("engine"))) is not None
        ]
        return Load(
            at=now,
            running=count(metrics.total(_RUNNING)),
            waiting=count(metrics.total(_WAITING)),
            used_tokens=sum(used) if used else None,
            capacity_tokens=sum(known) if known else None,
        )

    def feed_calls(self) -> tuple[Call, ...]:
        return (Call("GET", "/kv_event_sources"),)

    def read_feed(self, replies: tuple[Reply, ...], host: str) -> tuple[FeedSource, ...]:
        """One publisher a data-parallel rank: by the rank's number (0.32), in a bare array or under
        `sources`; an older vLLM does not tell."""
        if absent(replies[0]):
            return ()
        told = page(replies[0], "/kv_event_sources")
        listed = _listed(told) if isinstance(told, dict) else told
        if not isinstance(listed, list) or not all(isinstance(source, dict) for source in listed):
            raise ReplicaRefused("its /kv_event_sources is not a list of sources")
        if self.rank is not None:
            listed = sorted(listed, key=_rank_of)[self.rank : self.rank + 1]
        return tuple(
            FeedSource(
                endpoint=published,
                replay=reachable(source.get("replay_endpoint"), host),
                topic=topic if isinstance(topic := source.get("topic"), str) else "",
                rank=_rank_of(source),
            )
            for source in listed
            if (published := reachable(source.get("endpoint"), host)) is not None
        )

    def fields(self, *, turn: str, session: str | None, salt: str | None) -> Mapping[str, Any]:
        """`cache_salt` must have 1 to 128 characters and no `@`, `/` or backslash."""
        fields: dict[str, Any] = {"request_id": turn}
        if session is not None:
            fields["session_id"] = session
        if salt is not None:
            fields["cache_salt"] = salt
        return fields

    def messages(
        self, body: Mapping[str, Any], fields: Mapping[str, Any], identity: Identity
    ) -> Own | None:
        """What its Messages has no field for goes in headers. A budget for thinking breaks the
        stream of a server without `--reasoning-parser`, which none tells."""
        thinking = body.get("thinking") or {}
        taken = keeps(body, "stop_sequences", "chat_template_kwargs")
        if not taken or thinking.get("type") == "enabled" or not since(identity.version, *_SEEN):
            return None
        set_in = {name: value for name, value in fields.items() if name not in _HEADERS}
        if not set_in.keys() <= {"cache_salt"}:
            return None
        headers = tuple(
            (header, str(fields[name]).encode())
            for name, header in _HEADERS.items()
            if name in fields
        )
        return Own(PATH, {**body, **set_in}, headers)

    def adapter_call(self, adapter: Adapter) -> Call:
        about = {"lora_name": adapter.name, "lora_path": adapter.path}
        return Call("POST", "/v1/load_lora_adapter", msgspec.json.encode(about))

    def drop_adapter_call(self, name: str) -> Call:
        """Requests that run go on with it."""
        return Call("POST", "/v1/unload_lora_adapter", msgspec.json.encode({"lora_name": name}))

    def read_adapter(self, reply: Reply) -> None:
        if reply.status == 404 and reply.body == _NO_ROUTE:
            raise ReplicaRefused(
                "it loads no adapters; start it with --enable-lora, and with "
                "VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 in its environment"
            )
        super().read_adapter(reply)

    def follow_up(self, path: str, document: Mapping[str, Any], text: str) -> FollowUps | None:
        """The template renders the reply and is cut off after it; many trim what surrounds it."""
        fields = {"continue_final_message": True, "add_generation_prompt": False}
        return continued(path, document, text, fields)

    def order(self, priority: int, identity: Identity) -> Mapping[str, Any]:
        """Started without `--scheduling-policy priority`, it takes a priority and leaves it aside;
        nothing tells which."""
        return {"priority": priority} if identity.orders is not None else {}

    def count_call(self, document: Mapping[str, Any]) -> Call | None:
        return tokenize_call(document)


def _listed(told: Mapping[str, Any]) -> Any:
    """The sources of an object: its `sources`, or its values by rank; a vLLM that only renders
    has none."""
    if not all(key.isdigit() and isinstance(value, dict) for key, value in told.items()):
        return told.get("sources")
    return [{**source, "data_parallel_rank": int(rank)} for rank, source in told.items()]


def _rank_of(source: Mapping[str, Any]) -> int:
    return count(source.get("data_parallel_rank")) or 0


def _engines(metrics: Samples) -> list[str]:
    """The labels of its engine cores, in the order of the ranks by which requests name them: a
    server that runs some of a deployment's counts its own from 0, and labels them as the whole."""
    samples = [*metrics.all(_CONFIG), *metrics.all(_RUNNING)]  # the latter only after a request
    named = {name for sample in samples if (name := sample.labels.get("engine"))}
    return sorted(named, key=lambda name: (len(name), name))


def _most_adapters(metrics: Samples) -> int | None:
    """How many it runs side by side, told once one has run. It can know of more, but takes them
    from their files again and again then."""
    told = [sample.labels.get("max_lora", "") for sample in metrics.all(_LORA)]
    return max((int(most) for most in told if most.isdecimal()), default=0) or None


def _capacities(metrics: Samples) -> dict[str | None, int | None]:
    """The KV cache of each engine core in tokens.

    NOTE: each is labelled with the blocks of all of them together, but with its own tokens (0.32;
    an older vLLM does not tell these).
    """
    told = metrics.all(_CONFIG)
    found: dict[str | None, int | None] = {}
    for labels in (sample.labels for sample in told):
        tokens, blocks, size = (
            int(text) if (text := labels.get(name, "")).isdecimal() else None
            for name in ("kv_cache_size_tokens", "num_gpu_blocks", "block_size")
        )
        if tokens is None and blocks is not None and size is not None:
            tokens = blocks // len(told) * size
        found[labels.get("engine")] = tokens
    return found


def _acceptance(metrics: Samples) -> float | None:
    """Tokens a step since it started: vLLM tells of its counters alone, not of each answer."""
    drafts, accepted = metrics.total(_DRAFTS), metrics.total(_ACCEPTED)
    return 1 + accepted / drafts if drafts and accepted is not None else None


def _refuse_asleep(metrics: Samples) -> None:
    """A vLLM that was put to sleep says that it is healthy, and lets every request hang."""
    for sample in metrics.all(_SLEEP):
        if sample.labels.get("sleep_state") == "awake" and sample.value == 0:
            raise ReplicaRefused("it was put to sleep")
