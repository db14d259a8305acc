"""An engine's streamed chat, told as Anthropic's events."""

from typing import Any

from anthropic.types import RawMessageStreamEvent
from pydantic import TypeAdapter

from sessile.api.messages_body import Asked
from sessile.api.messages_events import MessageStream
from sessile.router.engine import Reply

EVENT: TypeAdapter[Any] = TypeAdapter(RawMessageStreamEvent)


def message_of(reply: Reply) -> MessageStream:
    """The message that the stream has become. Every event is checked against Anthropic's types."""
    stream = MessageStream("msg_1", Asked(model="m", stream=True, document={}))
    told = stream.start()
    stream.feed(reply.body, told)
    told += stream.finish()
    for event in told:
        if event.type != "ping":
            EVENT.validate_json(event.body)
    return stream
