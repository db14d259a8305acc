"""The OpenAI API's shapes of what a fake replica answers."""

from typing import Any

from sessile.lab.fake_cache import digest
from sessile.lab.fake_faults import Seen
from sessile.lab.fake_replies import pieces

_WORDS = {
    400: "This model's maximum context length is exceeded.",
    429: "Too many requests.",
    500: "The engine broke.",
    503: "The engine is not available.",
}
Body = dict[str, Any]


def whole(head: Body, seen: Seen, delta: Body, finish: str) -> Body:
    """The answer of a request that does not stream."""
    if _is_chat(seen):
        said = {"message": {"role": "assistant", "content": None, **delta}}
        kind = "chat.completion"
    else:
        said, kind = {"text": delta.get("content", "")}, "text_completion"
    usage = _usage(seen, len(pieces(delta)))
    return {**head, "object": kind, "choices": [_choice(said, finish)], "usage": usage}


def chunks(
    head: Body, seen: Seen, delta: Body, finish: str, *, accepts: float | None, usage: bool
) -> list[Body]:
    """The same as a stream: a piece each, the end, what a step `accepts` if that is to be told, and
    the usage if it is."""
    chat, parts = _is_chat(seen), pieces(delta)
    head = {**head, "object": "chat.completion.chunk" if chat else "text_completion"}
    choices = [
        _choice({"delta": part} if chat else {"text": part.get("content", "")}, None)
        for part in parts
    ]
    choices.append(_choice({"delta": {}} if chat else {"text": ""}, finish))
    made: list[Body] = [{**head, "choices": [choice]} for choice in choices]
    if accepts is not None:
        details = {"spec_tokens_details": {"spec_accept_length": accepts}}
        made.append({**head, "choices": [], "sglext": details})
    if usage:
        made.append({**head, "choices": [], "usage": _usage(seen, len(parts))})
    return made


def embeddings(model: str, body: Body, seen: Seen) -> Body:
    """A vector for each text, which depends on the text alone."""
    given = body.get("input") or ""
    data = [
        {
            "object": "embedding",
            "index": index,
            "embedding": [byte / 255 for byte in digest(b"", str(text))[:8]],
        }
        for index, text in enumerate(given if isinstance(given, list) else [given])
    ]
    return {"object": "list", "model": model, "data": data, "usage": _usage(seen, 0)}


def error(status: int, message: str | None = None) -> Body:
    """An error, in the engine's usual words for its status unless others are given."""
    message = message or _WORDS.get(status, "It went wrong.")
    code = "context_length_exceeded" if status == 400 else None
    kind = "invalid_request_error" if status < 500 else "server_error"
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}


def _is_chat(seen: Seen) -> bool:
    return seen.path != "/v1/completions"


def _choice(content: Body, finish: str | None) -> Body:
    return {"index": 0, **content, "finish_reason": finish}


def _usage(seen: Seen, completion: int) -> Body:
    return {
        "prompt_tokens": seen.prompt_tokens,
        "completion_tokens": completion,
        "total_tokens": seen.prompt_tokens + completion,
        "prompt_tokens_details": {"cached_tokens": seen.cached_tokens},
    }
