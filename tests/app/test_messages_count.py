"""The tokens of a message, counted as Anthropic's client asks for that."""

import anthropic
import pytest

from messages_asked import HI, TOOL


async def test_tokens_are_counted_by_a_turn_of_one_token(router, claude):
    """Where the engine has no tokenizer to ask."""
    counted = await claude.messages.count_tokens(model="m", messages=HI, system="Be.", tools=[TOOL])
    assert counted.input_tokens == 2  # the scripted engine counts messages
    (asked,) = router.engine.asked
    assert asked["max_tokens"] == 1 and asked["tools"][0]["function"]["name"] == "weather"


async def test_a_count_is_refused_as_a_message_is(router, claude):
    """By the field's name, and by the engine's own words."""
    with pytest.raises(anthropic.BadRequestError, match="messages"):
        await claude.messages.count_tokens(model="m", messages=[])
    with pytest.raises(anthropic.NotFoundError):
        await claude.messages.count_tokens(model="nothing", messages=HI)
    router.engine.refuses(400, "too long, my friend")
    with pytest.raises(anthropic.BadRequestError, match="my friend"):
        await claude.messages.count_tokens(model="m", messages=HI)
