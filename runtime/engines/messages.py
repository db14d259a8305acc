"""An engine's own `/v1/messages`: which requests keep there all that they ask for. Pure.

SGLang and vLLM translate a message to a chat request of their own, as the router does. What they
would leave aside without a word, because their version of the API has no place for it, is better
translated here.
"""

from collections.abc import Mapping
from typing import Any

PATH = "/v1/messages"

_READ = frozenset(
    (
        "model", "messages", "system", "max_tokens", "stream", "temperature", "top_k",
        "top_p", "thinking", "tools", "tool_choice", "output_config",
    )
)  # fmt: skip


def keeps(body: Mapping[str, Any], *more: str) -> bool:
    """Whether an engine that reads `more` than the fields that all read would do all that `body`
    says.

    Neither marks a failed tool's result, goes on with a reply that was begun, or puts neighbours
    of one role together.
    """
    given = {name for name, value in body.items() if value is not None}
    if not given <= _READ.union(more):
        return False
    messages = body["messages"]
    roles = [message["role"] for message in messages]
    if roles[-1] == "assistant" or any(a == b for a, b in zip(roles, roles[1:], strict=False)):
        return False
    return not any(
        isinstance(block, Mapping) and block.get("is_error")
        for message in messages
        if isinstance(message["content"], list)
        for block in message["content"]
    )
