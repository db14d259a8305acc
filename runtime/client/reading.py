"""What a response and an error of the router's say, read from their JSON. Pure."""

from collections.abc import Mapping
from typing import Any

from sessile.errors import SessileError, from_code
from sessile.router.engine import Usage


def why_incomplete(response: Mapping[str, Any]) -> str | None:
    """Why its text stops early, None where it does not."""
    status = response.get("status")
    if status == "cancelled":
        return "cancelled"
    details = response.get("incomplete_details") or {}
    return details.get("reason") if status == "incomplete" else None


def text_of(response: Mapping[str, Any]) -> str:
    """All that it says."""
    return "".join(
        part.get("text", "")
        for item in response.get("output") or ()
        if item.get("type") == "message"
        for part in item.get("content") or ()
        if part.get("type") == "output_text"
    )


def read_usage(usage: Mapping[str, Any] | None) -> Usage:
    """The counts that it tells; what is not told is unknown."""
    if usage is None:
        return Usage()
    details = usage.get("input_tokens_details") or {}
    return Usage(
        usage.get("input_tokens"), usage.get("output_tokens"), details.get("cached_tokens")
    )


def added(one: Usage, other: Usage) -> Usage:
    """Counts added; what is unknown in one of them is unknown in the sum."""

    def add(a: int | None, b: int | None) -> int | None:
        return None if a is None or b is None else a + b

    return Usage(
        add(one.prompt_tokens, other.prompt_tokens),
        add(one.completion_tokens, other.completion_tokens),
        add(one.cached_tokens, other.cached_tokens),
    )


def as_error(told: Mapping[str, Any]) -> SessileError:
    """The error that the router tells of, as the class that its code names."""
    message = told.get("message") or "the router gave no reason"
    return from_code(told.get("code") or "", message, param=told.get("param"))
