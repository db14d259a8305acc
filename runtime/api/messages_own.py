"""An Anthropic Messages request as engines that speak that API are given it. Pure.

It is the client's own, but for what the router has to say of every turn: always a stream, and one
token where none is asked for. Texts that stand side by side are one, joined as they are in the chat
request that the turn is known by: the engine reads the same prompt and finds it in its cache,
whichever way, and by whichever API, the conversation came before.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from sessile.api.messages_blocks import system_text
from sessile.api.messages_body import Asked

# What the router has heard, and engines have no use for.
_HEARD = frozenset(
    ("cache_control", "context_management", "metadata", "service_tier", "session_id", "speed")
)


def own_form(body: Mapping[str, Any], asked: Asked) -> dict[str, Any]:
    """The request in `body`, which has been read as `asked`."""
    document = asked.document
    own = {name: value for name, value in body.items() if name not in _HEARD and name != "system"}
    if rules := system_text(body.get("system"), "system"):
        own["system"] = rules
    own["messages"] = [_message(message) for message in body["messages"]]
    own["max_tokens"] = document["max_tokens"]
    own["stream"] = True
    if "chat_template_kwargs" in document:
        own["chat_template_kwargs"] = document["chat_template_kwargs"]
    return own


def _message(message: Mapping[str, Any]) -> dict[str, Any]:
    role, content = message["role"], message.get("content")
    if role == "system":
        return {**message, "content": system_text(content, "system")}
    if not isinstance(content, list):
        return dict(message)
    blocks = [
        {**block, "content": _joined(block["content"], "\n")}
        if block.get("type") == "tool_result" and isinstance(block.get("content"), list)
        else block
        for block in content
    ]
    return {**message, "content": _joined(blocks, "" if role == "assistant" else "\n")}


def _joined(blocks: Sequence[Any], between: str) -> Any:
    """The blocks, texts beside each other as one; a text alone as a string."""
    if any(block["type"] == "image" for block in blocks):
        return blocks
    joined: list[Any] = []
    for block in blocks:
        last = joined[-1] if joined else {}
        if block["type"] == last.get("type") == "text":
            joined[-1] = {"type": "text", "text": last["text"] + between + block["text"]}
        else:
            joined.append(block)
    if not joined or (len(joined) == 1 and joined[0]["type"] == "text"):
        return joined[0]["text"] if joined else ""
    return joined
