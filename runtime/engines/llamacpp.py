"""llama.cpp's HTTP server: slots are its unit of load, its timings the evidence of a cache hit."""

import re
from collections.abc import Generator, Mapping
from typing import Any

import msgspec

from sessile.engines.base import OpenAIShaped, absent, array, count
from sessile.engines.base import document as document_of
from sessile.engines.messages import PATH, keeps
from sessile.engines.samples import Samples
from sessile.errors import ReplicaRefused
from sessile.router.engine import (
    Call,
    FollowUp,
    FollowUps,
    Identity,
    Load,
    Own,
    Reply,
    Steps,
    Usage,
)
from sessile.router.needs import AUDIO, IMAGES, TOOLS

_PROCESSING = "llamacpp:requests_processing"
_DEFERRED = "llamacpp:requests_deferred"
_OF_CHAT = ("messages", "tools", "tool_choice", "parallel_tool_calls", "chat_template_kwargs")
_MARKER = re.compile(r"<__media_\w{32}__>")


class LlamaCpp(OpenAIShaped):
    """The adapter of `llamacpp=URL`, and of the embedded replicas.

    A hang-up stops a stream at its next token. An answer that is not streamed is stopped only
    once its server has had one second without any other result, which tokens of other streams and
    looks at `/slots` put off: so it is asked for as a stream.
    """

    kind = "llamacpp"
    folds = True

    def identity_calls(self) -> tuple[Call, ...]:
        return (Call("GET", "/v1/models"), Call("GET", "/props"), Call("GET", "/slots"))

    def read_identity(self, replies: tuple[Reply, ...]) -> Identity:
        models = super().read_identity(replies[:1]).models
        props = document_of(replies[1], "/props")
        settings = props.get("default_generation_settings")
        build = props.get("build_info")
        return Identity(
            models=models,
            context_tokens=count(settings.get("n_ctx")) if isinstance(settings, dict) else None,
            # b0: a build that was not told its number, as xllamacpp's.
            version=build if isinstance(build, str) and not build.startswith("b0-") else None,
            incarnation=_incarnation(props),
            speculates=_speculates(replies[2]),
            lacks=_lacks(props),
        )

    def health_call(self) -> Call:
        return Call("GET", "/health")

    def load_calls(self) -> tuple[Call, ...]:
        return (Call("GET", "/slots"), Call("GET", "/metrics"))

    def read_load(self, replies: tuple[Reply, ...], now: float) -> Load:
        """Either page may be switched off (501): `--no-slots`, or no `--metrics`, the default."""
        running = waiting = slots = computed = None
        if not absent(replies[0]):
            states = [s for s in array(replies[0], "/slots") if isinstance(s, dict)]
            slots = len(states)
            running = sum(1 for state in states if state.get("is_processing") is True)
            computed = sum(_computed(state) for state in states)
        if not absent(replies[1]):
            metrics = Samples(replies[1], "/metrics", (_PROCESSING, _DEFERRED))
            running = count(metrics.total(_PROCESSING)) if running is None else running
            waiting = count(metrics.total(_DEFERRED))
        return Load(at=now, running=running, waiting=waiting, slots=slots, computed=computed)

    def call_fields(self, document: Mapping[str, Any]) -> Mapping[str, Any]:
        """It takes a function's name in `tool_choice` for auto: that function alone is offered
        instead, and one is required."""
        if (name := _named(document.get("tool_choice"))) is None:
            return {}
        offered = [tool for tool in document.get("tools") or () if _is_of(tool, name)]
        return {"tool_choice": "required", "tools": offered}

    def messages(
        self, body: Mapping[str, Any], fields: Mapping[str, Any], identity: Identity
    ) -> Own | None:
        """Its Messages knows no tool by name nor whether several may be called at once, no effort
        and no form of the answer, and tells no timings, by which speculation is judged. A build
        that has none refuses, and is asked as a chat then."""
        unread = ("tools", "tool_choice", "output_config", "thinking")
        if fields or identity.speculates or any(body.get(name) for name in unread):
            return None
        if not keeps(body, "stop_sequences", "chat_template_kwargs"):
            return None
        return Own(PATH, body)

    def carry(
        self, path: str, document: Mapping[str, Any], file: str
    ) -> tuple[Steps, Steps] | None:
        return _save(path, document, file), _restore(file)

    def follow_up(self, path: str, document: Mapping[str, Any], text: str) -> FollowUps | None:
        """By its rendered prompt, as a text completion: given a last message of the assistant's,
        a plain answer repeats it, and a stream ends the process (xllamacpp 2026.10). Tool calls
        would come as text that way."""
        if document.get("tools") and document.get("tool_choice") != "none":
            return None
        return _continue(path, document, text)

    def read_usage(self, usage: Mapping[str, Any], body: Mapping[str, Any]) -> Usage:
        read = super().read_usage(usage, body)
        timings = body.get("timings")
        if not isinstance(timings, Mapping):
            return read
        cached = read.cached_tokens
        return Usage(
            read.prompt_tokens,
            read.completion_tokens,
            count(timings.get("cache_n")) if cached is None else cached,
            _acceptance(timings),
        )

    def count_call(self, document: Mapping[str, Any]) -> Call | None:
        """Renders and counts exactly as a completion would, images too."""
        return Call("POST", "/v1/chat/completions/input_tokens", msgspec.json.encode(document))


def _computed(slot: Mapping[str, Any]) -> int:
    """Tokens of its prompt and of its answer, step by step."""
    told = slot.get("next_token")
    answers = told if isinstance(told, list) else [told]
    made = [a.get("n_decoded") for a in answers if isinstance(a, dict)]
    return sum(count(n) or 0 for n in (slot.get("n_prompt_tokens_processed"), *made))


def _lacks(props: Mapping[str, Any]) -> frozenset[str]:
    """What it says that the model has not: it answers media with a 500, and leaves tools that the
    template does not know out of the prompt, whatever `tool_choice` says. A build that says nothing
    of one is taken to have it."""
    media, caps = props.get("modalities"), props.get("chat_template_caps")
    told = (
        (IMAGES, media, "vision"),
        (AUDIO, media, "audio"),
        (TOOLS, caps, "supports_tools"),
    )
    return frozenset(
        need for need, says, name in told
        if isinstance(says, Mapping) and says.get(name) is False
    )  # fmt: skip


def _named(choice: Any) -> Any:
    """The name of the function that `tool_choice` demands."""
    function = choice.get("function") if isinstance(choice, dict) else None
    return function.get("name") if isinstance(function, dict) else None


def _is_of(tool: Any, name: Any) -> bool:
    function = tool.get("function") if isinstance(tool, dict) else None
    return isinstance(function, dict) and function.get("name") == name


def _speculates(slots: Reply) -> bool | None:
    """NOTE: `/props` says "none" of a server that does."""
    if absent(slots):
        return None
    told = [s["speculative"] for s in array(slots, "/slots") if _is_told(s)]
    return any(told) if told else None


def _is_told(slot: Any) -> bool:
    return isinstance(slot, dict) and isinstance(slot.get("speculative"), bool)


def _acceptance(timings: Mapping[str, Any]) -> float | None:
    """Each step made one token more than it accepted of its draft, if it had one: of an answer for
    which there was none at all, nothing is said."""
    made, accepted = count(timings.get("predicted_n")), count(timings.get("draft_n_accepted", 0))
    if made is None or accepted is None or accepted >= made:
        return None
    return made / (made - accepted)


def _rendered(path: str, document: Mapping[str, Any]) -> Generator[Call, Reply, str]:
    """The prompt as the engine reads it, rendered by its own template if it is a chat."""
    prompt = document.get("prompt")
    if path == "/v1/chat/completions":
        reply = yield Call("POST", "/apply-template", _json(document))
        prompt = document_of(reply, "/apply-template").get("prompt")
    if not isinstance(prompt, str):
        raise ReplicaRefused("the prompt is not one text")
    return prompt


def _continue(path: str, document: Mapping[str, Any], text: str) -> FollowUps:
    reply = yield Call("POST", "/tokenize", _json({"content": text}))
    told = document_of(reply, "/tokenize").get("tokens")
    prompt = yield from _rendered(path, document)
    rest = {name: value for name, value in document.items() if name not in _OF_CHAT}
    tokens = len(told) if isinstance(told, list) else None
    return FollowUp("/v1/completions", {**rest, "prompt": prompt + text}, tokens)


def _save(path: str, document: Mapping[str, Any], file: str) -> Steps:
    """The prompt is run once more, for no token: that takes it out of the host cache into a slot,
    and tells which."""
    prompt = yield from _rendered(path, document)
    slot = _slot((yield _run(prompt)))
    reply = yield Call("POST", f"/slots/{slot}?action=save", _json({"filename": file}))
    document_of(reply, "/slots")


def _restore(file: str) -> Steps:
    """A prompt of one word takes the slot that was used the longest ago, whose session goes to the
    host cache; restoring into it at once would lose that."""
    slot = _slot((yield _run("-")))
    reply = yield Call("POST", f"/slots/{slot}?action=restore", _json({"filename": file}))
    document_of(reply, "/slots")


def _run(prompt: str) -> Call:
    return Call("POST", "/completion", _json({"prompt": prompt, "n_predict": 0}))


def _slot(reply: Reply) -> int:
    slot = document_of(reply, "/completion").get("id_slot")
    if not isinstance(slot, int):
        raise ReplicaRefused("its /completion names no slot")
    return slot


def _json(body: Mapping[str, Any]) -> bytes:
    return msgspec.json.encode(body)


def _incarnation(props: Mapping[str, Any]) -> str | None:
    """The marker that stands for media in a prompt: 32 random letters, drawn at each start. A
    build that uses a fixed one has nothing that tells two starts apart."""
    marker = props.get("media_marker")
    if isinstance(marker, str) and _MARKER.fullmatch(marker):
        return marker.removeprefix("<__media_").removesuffix("__>")[:16]
    return None
