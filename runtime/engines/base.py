"""What all OpenAI-shaped engines share, and how adapters read replies.

An adapter is strict with what a replica must say (its models) and lenient with the rest: what it
leaves out, or has switched off, is unknown (None), and what is not an answer at all raises
`ReplicaRefused`.
"""

import re
from collections.abc import Mapping
from contextlib import suppress
from copy import copy
from typing import Any

import msgspec

from sessile.carry_on import with_text
from sessile.errors import NotSupported, ReplicaRefused, ReplicaUnreachable
from sessile.router.adapters import Adapter
from sessile.router.engine import (
    Call,
    Engine,
    FeedSource,
    FollowUp,
    FollowUps,
    Headers,
    Identity,
    Load,
    Own,
    Reply,
    Steps,
    Usage,
)

_ABSENT = (404, 405, 501)  # how engines answer a path that they lack or have switched off
_PROMPT = (
    "model", "messages", "tools", "tool_choice", "chat_template_kwargs", "continue_final_message",
    "add_generation_prompt",
)  # fmt: skip
_TCP = re.compile(r"tcp://(.+):(\d+)")
_WILDCARDS = ("*", "0.0.0.0", "::", "[::]")
_LOOPBACK = ("127.0.0.1", "localhost", "[::1]")


class OpenAIShaped:
    """The parts of an adapter that need nothing but OpenAI's own API. Stateless; `rank` is that of
    an adapter for one data-parallel rank, None for a whole server."""

    kind = "openai"
    rank: int | None = None
    embeddings = True
    folds = False
    loads_adapters = False
    fetch_command: str | None = None

    def detect_calls(self) -> tuple[Call, ...]:
        return ()

    def detected(self, replies: tuple[Reply, ...]) -> Engine:
        return self

    def at_rank(self, rank: int) -> Engine:
        ranked = copy(self)
        ranked.rank = rank
        return ranked

    def identity_calls(self) -> tuple[Call, ...]:
        return (Call("GET", "/v1/models"),)

    def read_identity(self, replies: tuple[Reply, ...]) -> Identity:
        listed = document(replies[0], "/v1/models").get("data")
        if not isinstance(listed, list):
            raise ReplicaRefused("its /v1/models is not a list of models")
        models = [m for m in listed if isinstance(m, dict) and isinstance(m.get("id"), str)]
        if not models:
            raise ReplicaRefused("its /v1/models lists no model")
        lengths = [count(m.get("max_model_len")) for m in models]
        known = [length for length in lengths if length]
        adapted = [m for m in models if isinstance(m.get("parent"), str)]
        return Identity(
            models=tuple(m["id"] for m in models if m not in adapted),
            adapters=tuple(
                Adapter(name=m["id"], base=m["parent"], path=m.get("root")) for m in adapted
            ),
            context_tokens=min(known, default=None),
        )

    def health_call(self) -> Call:
        return Call("GET", "/v1/models")

    def read_health(self, reply: Reply) -> None:
        if reply.status != 200:
            raise ReplicaUnreachable(f"its {self.health_call().path} answered {reply.status}")

    def load_calls(self) -> tuple[Call, ...]:
        return ()

    def read_load(self, replies: tuple[Reply, ...], now: float) -> Load:
        return Load(at=now)

    def feed_calls(self) -> tuple[Call, ...]:
        return ()

    def read_feed(self, replies: tuple[Reply, ...], host: str) -> tuple[FeedSource, ...]:
        return ()

    def fields(self, *, turn: str, session: str | None, salt: str | None) -> Mapping[str, Any]:
        return {}

    def call_fields(self, document: Mapping[str, Any]) -> Mapping[str, Any]:
        return {}

    def headers(self, session: str | None) -> Headers:
        """SGLang and vLLM name a rank in the same header."""
        return () if self.rank is None else ((b"x-data-parallel-rank", b"%d" % self.rank),)

    def messages(
        self, body: Mapping[str, Any], fields: Mapping[str, Any], identity: Identity
    ) -> Own | None:
        return None

    def adapter_fields(self, name: str) -> Mapping[str, Any]:
        return {}

    def acceptance_fields(self) -> Mapping[str, Any]:
        return {}

    def adapter_call(self, adapter: Adapter) -> Call:
        raise NotSupported(f"{self.kind} loads no adapters while it runs; start it with them")

    def drop_adapter_call(self, name: str) -> Call:
        raise NotSupported(f"{self.kind} unloads no adapters while it runs")

    def read_adapter(self, reply: Reply) -> None:
        """SGLang says `error_message`, vLLM an error as OpenAI's."""
        if reply.status == 200:
            return
        told: Any = None
        with suppress(msgspec.DecodeError, UnicodeDecodeError):
            told = msgspec.json.decode(reply.body)
        told = told if isinstance(told, dict) else {}
        error = told.get("error")
        why = error.get("message") if isinstance(error, dict) else told.get("error_message")
        if not isinstance(why, str) or not why:
            why = f"it answered {reply.status} when asked for an adapter"
        raise ReplicaRefused(why)

    def order(self, priority: int, identity: Identity) -> Mapping[str, Any]:
        return {}

    def release_call(self, session: str, identity: Identity) -> Call | None:
        return None

    def hold_call(self, model: str, seconds: float) -> Call | None:
        return None

    def carry(
        self, path: str, document: Mapping[str, Any], file: str
    ) -> tuple[Steps, Steps] | None:
        return None

    def follow_up(self, path: str, document: Mapping[str, Any], text: str) -> FollowUps | None:
        return None

    def read_usage(self, usage: Mapping[str, Any], body: Mapping[str, Any]) -> Usage:
        details = usage.get("prompt_tokens_details")
        cached = details.get("cached_tokens") if isinstance(details, Mapping) else None
        return Usage(
            count(usage.get("prompt_tokens")), count(usage.get("completion_tokens")), count(cached)
        )

    def count_call(self, document: Mapping[str, Any]) -> Call | None:
        return None

    def read_count(self, reply: Reply) -> int | None:
        """SGLang and vLLM say `count`, llama.cpp `input_tokens`."""
        if absent(reply):
            return None
        told = document(reply, "count of tokens")
        counted = count(told.get("count", told.get("input_tokens")))
        if counted is None:
            raise ReplicaRefused("its count of tokens is not a number")
        return counted

    def abort_call(self, turn: str) -> Call | None:
        return None


def tokenize_call(document: Mapping[str, Any]) -> Call | None:
    """SGLang's and vLLM's `/tokenize` of a chat request, which is rendered as a completion would
    be. Images, and a reasoning effort that a template may render, are counted only by a turn."""
    if document.get("reasoning_effort") is not None:
        return None
    for message in document["messages"]:
        content = message.get("content")
        if isinstance(content, list) and any(part.get("type") != "text" for part in content):
            return None
    fields = {name: document[name] for name in _PROMPT if document.get(name) is not None}
    return Call("POST", "/tokenize", msgspec.json.encode(fields))


def continued(
    path: str, document: Mapping[str, Any], text: str, fields: Mapping[str, Any]
) -> FollowUps:
    """SGLang's and vLLM's: `text` as a last message of the assistant's, or after the prompt, with
    the `fields` that make the engine go on with such a message."""
    about = {"model": document.get("model"), "prompt": text, "add_special_tokens": False}
    reply = yield Call("POST", "/tokenize", msgspec.json.encode(about))
    tokens = OpenAIShaped().read_count(reply) if reply.status < 400 else None
    if path == "/v1/completions":
        return FollowUp(path, {**document, "prompt": document["prompt"] + text}, tokens)
    return FollowUp(path, {**document, **fields, "messages": with_text(document, text)}, tokens)


def page(reply: Reply, path: str) -> Any:
    """A reply's JSON; raises `ReplicaRefused` saying what came instead."""
    if reply.status != 200:
        raise ReplicaRefused(f"its {path} answered {reply.status}")
    try:
        return msgspec.json.decode(reply.body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ReplicaRefused(f"its {path} is not JSON") from error


def document(reply: Reply, path: str) -> dict[str, Any]:
    """A reply's JSON object; raises `ReplicaRefused` saying what came instead."""
    body = page(reply, path)
    if not isinstance(body, dict):
        raise ReplicaRefused(f"its {path} is not a JSON object")
    return body


def array(reply: Reply, path: str) -> list[Any]:
    """A reply's JSON array; raises `ReplicaRefused` saying what came instead."""
    body = page(reply, path)
    if not isinstance(body, list):
        raise ReplicaRefused(f"its {path} is not a JSON array")
    return body


def absent(reply: Reply) -> bool:
    """Whether the replica has no such path, or was started without it."""
    return reply.status in _ABSENT


def since(version: object, *first: int) -> bool:
    """Whether a version, as `0.32.0`, is the `first` one or came after it."""
    found = re.match(r"(\d+)\.(\d+)(?:\.(\d+))?", version) if isinstance(version, str) else None
    return found is not None and tuple(int(part or 0) for part in found.groups()) >= first


def count(value: object) -> int | None:
    """A count of tokens or requests, or None for anything that is not one."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return value if isinstance(value, int) and type(value) is int and value >= 0 else None


def ratio(value: object) -> float | None:
    """A number of tokens a step, or None for anything that is not one: each makes at least one."""
    return float(value) if isinstance(value, int | float) and 1 <= value < 1000 else None


def reachable(endpoint: object, host: str) -> str | None:
    """An endpoint of ZeroMQ's as we connect to it: one of TCP, with `host` for a wildcard, or where
    `host` is this machine a Unix socket. None for anything else."""
    if not isinstance(endpoint, str):
        return None
    if endpoint.startswith("ipc://"):
        return endpoint if host in _LOOPBACK else None
    if not (match := _TCP.fullmatch(endpoint)):
        return None
    named, port = match.groups()
    return f"tcp://{host if named in _WILDCARDS else named}:{port}"
