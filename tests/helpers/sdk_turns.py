"""Turns of the SDK's sessions, as the tests of it hear them."""

from typing import Any

from sessile import AsyncReply, Done, TextDelta


def said(router: Any, request: int = -1) -> list[Any]:
    """The contents of an engine call's messages."""
    return [message["content"] for message in router.engine.asked[request]["messages"]]


async def first_delta(events: Any) -> str:
    async for event in events:
        if isinstance(event, TextDelta):
            return event.text
    raise AssertionError("the turn ended without text")


async def rest(events: Any) -> tuple[str, AsyncReply]:
    """The text of the events that are left, and the reply."""
    text = ""
    async for event in events:
        if isinstance(event, TextDelta):
            text += event.text
        elif isinstance(event, Done):
            return text, event.reply
    raise AssertionError("the turn has no end")
