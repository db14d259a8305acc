"""Token counts of engines under the names of the Responses API. Pure."""

from typing import Any

from sessile.api.chat_chunks import decode_chunk


def usage_in(answer: bytes) -> dict[str, Any] | None:
    """The usage of a whole chat completion, under its Responses names."""
    usage = decode_chunk(answer).usage
    return None if usage is None else read_usage(usage)


def read_usage(usage: dict[str, Any]) -> dict[str, Any]:
    """Token counts under their Responses names.

    The API's types have no word for unknown: a count that the engine did not report is 0 here,
    and null in the turn's receipt.
    """
    prompt = _count(usage, "prompt_tokens")
    completion = _count(usage, "completion_tokens")
    prompt_details = usage.get("prompt_tokens_details")
    completion_details = usage.get("completion_tokens_details")
    reasoning = _count(completion_details, "reasoning_tokens") or _count(usage, "reasoning_tokens")
    return {
        "input_tokens": prompt,
        "input_tokens_details": {
            "cached_tokens": _count(prompt_details, "cached_tokens"),
            "cache_write_tokens": 0,
        },
        "output_tokens": completion,
        "output_tokens_details": {"reasoning_tokens": reasoning},
        "total_tokens": prompt + completion,
    }


def sum_of(one: dict[str, Any] | None, other: dict[str, Any] | None) -> dict[str, Any] | None:
    """Two usages as one, with the details that they hold."""
    if one is None or other is None:
        return one or other
    return {
        name: sum_of(value, other[name]) if isinstance(value, dict) else value + other[name]
        for name, value in one.items()
    }


def _count(counts: Any, name: str) -> int:
    value = counts.get(name) if isinstance(counts, dict) else None
    return value if isinstance(value, int) else 0
