"""SGLang's HTTP server (0.5.23): its own request ids, cache salts and abort.

Three things that its documentation does not say. `/health` runs a generation and takes a second;
`/model_info` and `/v1/models` answer while the model still warms up, and after SIGTERM; `/ready`
tells the truth in both. `/server_info` waits for the scheduler, so a long prefill holds it back.
"""

from collections.abc import Mapping
from hashlib import blake2b
from typing import Any, Literal

import msgspec
from msgspec import structs

from sessile.engines.base import (
    OpenAIShaped,
    absent,
    continued,
    count,
    document,
    ratio,
    reachable,
    since,
    tokenize_call,
)
from sessile.engines.messages import PATH, keeps
from sessile.errors import ReplicaRefused
from sessile.router.adapters import Adapter
from sessile.router.engine import Call, FeedSource, FollowUps, Identity, Load, Own, Reply, Usage

_SEEN = (0, 5, 23)
_SWITCHES = {"enable_thinking", "thinking"}  # which it sets by `thinking` itself


class SGLang(OpenAIShaped):
    """The adapter of `sglang=URL`."""

    kind = "sglang"
    loads_adapters = True

    def identity_calls(self) -> tuple[Call, ...]:
        return (Call("GET", "/v1/models"), Call("GET", "/server_info"))

    def read_identity(self, replies: tuple[Reply, ...]) -> Identity:
        models = super().read_identity(replies[:1])
        info = document(replies[1], "/server_info")
        return Identity(
            models=models.models,
            adapters=models.adapters,
            most_adapters=count(info.get("max_loaded_loras")),
            ranks=_ranks(info),
            context_tokens=models.context_tokens or count(info.get("context_length")),
            version=_text(info.get("version")),
            incarnation=_incarnation(info),
            counts_cached=info.get("enable_cache_report") is True,
            host_ratio=_host_ratio(info),
            holds_sessions=info.get("enable_session_radix_cache") is True,
            names_sessions=_feed(info) is not None,
            speculates=_speculates(info),
            acceptance_length=_acceptance(info),
            orders=_orders(info),
        )

    def health_call(self) -> Call:
        return Call("GET", "/ready")

    def read_health(self, reply: Reply) -> None:
        if not absent(reply):  # an SGLang without /ready: its identity must do
            super().read_health(reply)

    def load_calls(self) -> tuple[Call, ...]:
        return (Call("GET", "/v1/loads?include=core"),)

    def read_load(self, replies: tuple[Reply, ...], now: float) -> Load:
        """That of the rank, or the sum over all; an SGLang without /v1/loads reports nothing."""
        if absent(replies[0]):
            return Load(at=now)
        ranks = document(replies[0], "/v1/loads").get("loads")
        if not isinstance(ranks, list) or not all(isinstance(rank, dict) for rank in ranks):
            raise ReplicaRefused("its /v1/loads is not a list of loads")
        if self.rank is not None:
            ranks = [rank for rank in ranks if rank.get("dp_rank") == self.rank]

        def total(name: str) -> int | None:
            known = [n for rank in ranks if (n := count(rank.get(name))) is not None]
            return sum(known) if known else None

        return Load(
            at=now,
            running=total("num_running_reqs"),
            waiting=total("num_waiting_reqs"),
            used_tokens=total("num_used_tokens"),
            capacity_tokens=total("max_total_num_tokens"),
            slots=total("max_running_requests"),
        )

    def feed_calls(self) -> tuple[Call, ...]:
        return (Call("GET", "/server_info"),)

    def read_feed(self, replies: tuple[Reply, ...], host: str) -> tuple[FeedSource, ...]:
        """One publisher a data-parallel rank, at the base port and those after it."""
        told = _feed(document(replies[0], "/server_info"))
        if told is None:
            return ()
        port, replay_port = (
            count(told.get(name)) for name in ("endpoint_port_base", "replay_endpoint_port_base")
        )
        if port is None:
            return ()

        def endpoint(base: int, rank: int) -> str | None:
            return reachable(f"tcp://{told.get('endpoint_host')}:{base + rank}", host)

        return tuple(
            FeedSource(
                endpoint=published,
                replay=endpoint(replay_port, rank) if replay_port else None,
                topic=_text(told.get("topic")) or "",
                rank=rank,
            )
            for rank in range(count(told.get("dp_size")) or 1)
            if self.rank in (None, rank) and (published := endpoint(port, rank)) is not None
        )

    def fields(self, *, turn: str, session: str | None, salt: str | None) -> Mapping[str, Any]:
        """`rid` is refused while another request of that id runs: a turn id is used once."""
        fields: dict[str, Any] = {"rid": turn}
        if session is not None:
            fields["session_id"] = session
        if salt is not None:
            fields["cache_salt"] = salt
        return fields

    def acceptance_fields(self) -> Mapping[str, Any]:
        """Told of as `sglext`; one that is older than 0.5.23 ignores it."""
        return {"return_spec_tokens_details": True}

    def read_usage(self, usage: Mapping[str, Any], body: Mapping[str, Any]) -> Usage:
        read = super().read_usage(usage, body)
        told = body.get("sglext")
        details = told.get("spec_tokens_details") if isinstance(told, Mapping) else None
        if not isinstance(details, Mapping):
            return read
        return structs.replace(read, acceptance_length=ratio(details.get("spec_accept_length")))

    def messages(
        self, body: Mapping[str, Any], fields: Mapping[str, Any], identity: Identity
    ) -> Own | None:
        """Its Messages has no place for what is set on a turn, but for that of a server to
        which sessions are nothing; it does not tell which stop sequence was met. NOTE: a hang-up
        alone stops such a turn, since its `rid` is not the turn's. A session that KV events do not
        name would be taken for one of which nothing is held."""
        knows = identity.holds_sessions or identity.names_sessions
        unsaid = {"rid"} if knows else {"rid", "session_id"}
        switches = body.get("chat_template_kwargs", {}).keys()
        if (
            not since(identity.version, *_SEEN)
            or not fields.keys() <= unsaid
            or not switches <= _SWITCHES
            or not keeps(body, "chat_template_kwargs")
        ):
            return None
        return Own(PATH, {n: v for n, v in body.items() if n != "chat_template_kwargs"})

    def adapter_fields(self, name: str) -> Mapping[str, Any]:
        """NOTE: a model's name that has a colon, as `base:adapter`, would win over it."""
        return {"lora_path": name}

    def adapter_call(self, adapter: Adapter) -> Call:
        about = {"lora_name": adapter.name, "lora_path": adapter.path}
        return Call("POST", "/load_lora_adapter", msgspec.json.encode(about))

    def drop_adapter_call(self, name: str) -> Call:
        """It is answered once the adapter's running requests have ended."""
        return Call("POST", "/unload_lora_adapter", msgspec.json.encode({"lora_name": name}))

    def count_call(self, document: Mapping[str, Any]) -> Call | None:
        return tokenize_call(document)

    def follow_up(self, path: str, document: Mapping[str, Any], text: str) -> FollowUps | None:
        """The text is put after the prompt that opens a reply, as it is. Some parsers of reasoning
        take all that comes first for it; what has come to its answer holds no more of it."""
        fields = {"continue_final_message": True, "separate_reasoning": False}
        return continued(path, document, text, fields)

    def order(self, priority: int, identity: Identity) -> Mapping[str, Any]:
        """NOTE: while it orders, a request without a priority comes after all that have one."""
        if identity.orders is None:
            return {}
        return {"priority": priority if identity.orders == "low_first" else -priority}

    def release_call(self, session: str, identity: Identity) -> Call | None:
        """With `--enable-session-radix-cache` the prefixes of a `session_id` are evicted last, from
        the end of its first request on until it is closed here; a later request opens it anew."""
        if not identity.holds_sessions:
            return None
        return Call("POST", "/close_session", msgspec.json.encode({"session_id": session}))

    def abort_call(self, turn: str) -> Call | None:
        """Takes 0.2 s; closing the connection alone takes 2 s for an answer that is not streamed.

        NOTE: SGLang gives the samples of `n > 1`, and each prompt of a list, ids of its own; this
        call does not find them, and closing the connection is what stops them.
        """
        return Call("POST", "/abort_request", msgspec.json.encode({"rid": turn}))


def _incarnation(info: Mapping[str, Any]) -> str | None:
    """What differs between two starts: the seed, unless it was chosen, and how many seconds each
    step of the start took, to the nanosecond."""
    facts = [info.get("random_seed"), info.get("startup_time")]
    if facts == [None, None]:
        return None
    return blake2b(msgspec.json.encode(facts, order="sorted"), digest_size=8).hexdigest()


def _ranks(info: Mapping[str, Any]) -> int:
    """Replicas, or groups of attention; before the latter had a name, `dp_size` was both."""
    return (count(info.get("dp_size")) or 1) * (count(info.get("attn_dp_size")) or 1)


def _feed(info: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """What it says of the KV events that it publishes, if it does."""
    told = info.get("kv_events")
    return told if isinstance(told, dict) and told.get("publisher") == "zmq" else None


def _host_ratio(info: Mapping[str, Any]) -> float:
    """HiCache, unless it was sized in gigabytes: then its size in tokens is not told."""
    ratio = info.get("hicache_ratio")
    if info.get("enable_hierarchical_cache") is not True or info.get("hicache_size"):
        return 0.0
    return float(ratio) if isinstance(ratio, int | float) else 0.0


def _speculates(info: Mapping[str, Any]) -> bool | None:
    if "speculative_algorithm" not in info:
        return None
    return info["speculative_algorithm"] is not None


def _acceptance(info: Mapping[str, Any]) -> float | None:
    """The mean over the data-parallel ranks that have run something."""
    states = info.get("internal_states")
    told = [
        length
        for state in (states if isinstance(states, list) else ())
        if isinstance(state, dict) and (length := ratio(state.get("avg_spec_accept_length")))
    ]
    return sum(told) / len(told) if told else None


def _orders(info: Mapping[str, Any]) -> Literal["low_first", "high_first"] | None:
    if info.get("enable_priority_scheduling") is not True:
        return None
    low = info.get("schedule_low_priority_values_first") is True
    return "low_first" if low else "high_first"


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None
