"""Compaction: the older part of a conversation summed up by the model, in one item that stands for
it in later turns. Pure; `responses_steps` asks the model.

An item is opaque to clients (`sealed`) and holds two things: the summary, and the newest items word
for word, so that what the user wants now and the results the model waits for are not retold.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from sessile.api.responses_items import Item, Message, open_compaction
from sessile.errors import InvalidRequest
from sessile.sealed import seal

_KEPT_SHARE = 4  # what is kept word for word is at most one part in so many
_SUMMARY_TOKENS = 2_048
_ASK = (
    "Sum up the conversation so far, so that it can go on from your summary alone. State what the "
    "user wants and every instruction that still holds; what was found out and decided, with exact "
    "names, numbers, paths and identifiers; what was done; and what is left to do. Answer with the "
    "summary only."
)

_CALLS = ("function_call", "custom_tool_call", "mcp_approval_request")
_ANSWERS = (
    "function_call_output", "custom_tool_call_output", "mcp_approval_response", "mcp_call",
)  # fmt: skip

_encode = msgspec.json.Encoder().encode


def summary_request(document: Mapping[str, Any]) -> dict[str, Any]:
    """The chat request that has the model sum up what `document` would have sent it. It begins as
    that does, so that the engine finds its prefix in the cache."""
    messages: list[Message] = [*document["messages"], {"role": "user", "content": _ASK}]
    names = ("model", "tools", "chat_template_kwargs")
    asked = {name: document[name] for name in names if name in document}
    if "tools" in asked:
        asked["tool_choice"] = "none"
    return {**asked, "messages": messages, "max_tokens": _SUMMARY_TOKENS}


def read_summary(answer: bytes) -> str:
    """The model's summary, from a whole chat completion; "" if it gave none."""
    try:
        content = msgspec.json.decode(answer)["choices"][0]["message"]["content"]
    except (msgspec.DecodeError, LookupError, TypeError):
        return ""
    return content.strip() if isinstance(content, str) else ""


def compaction(id: str, summary: str, kept: Sequence[Item]) -> dict[str, Any]:
    """The item."""
    sealed = seal("compaction", [summary, list(kept)])
    return {"type": "compaction", "id": id, "encrypted_content": sealed}


def split(items: Sequence[Item]) -> int:
    """Where the newest items begin that are kept word for word: with the last user message if what
    follows it is a small part of all, else with the last calls, else there are none. Never between
    a call and its result."""
    sizes = [len(_encode(item)) for item in items]
    room = sum(sizes) // _KEPT_SHARE
    best, size = len(items), 0
    unmade: set[Any] = set()  # calls whose results stand behind `index`
    for index in range(len(items) - 1, -1, -1):
        item, kind = items[index], items[index].get("type", "message")
        size += sizes[index]
        if kind == "compaction" or size > room:
            break
        call = item.get("call_id", item.get("id"))
        if kind in _ANSWERS:
            unmade.update({item.get("approval_request_id") or item.get("call_id")} - {None})
        elif kind in _CALLS:
            unmade.discard(call)
        if unmade:
            continue
        best = index
        if _is_request(item):
            break
    return best


def _is_request(item: Item) -> bool:
    return item.get("type", "message") == "message" and item.get("role") == "user"


def last_request(items: Sequence[Item]) -> Item | None:
    """The newest message of the user: what is being worked on."""
    for item in reversed(items):
        if _is_request(item):
            return item
        if item.get("type") == "compaction":
            _, kept = open_compaction(item, "input")
            return last_request(kept)
    return None


def kept_of(items: Sequence[Item]) -> list[Item]:
    """What a compaction of `items` keeps word for word: the newest, the user's last message, and
    calls that still wait for an answer. Raises `InvalidRequest` if there is nothing to compact."""
    if not items:
        raise InvalidRequest("there is nothing to compact", param="input")
    cut = split(items)
    answered = {item.get("approval_request_id") or item.get("call_id") for item in items
                if item.get("type") in _ANSWERS}  # fmt: skip
    asked = None if any(map(_is_request, items[cut:])) else last_request(items[:cut])
    older = [] if asked is None else [asked]
    older += [
        item
        for item in items[:cut]
        if item.get("type") in _CALLS and item.get("call_id", item.get("id")) not in answered
    ]
    return [*older, *items[cut:]]


def truncated(messages: Sequence[Message], rules: int, share: float) -> list[Message]:
    """The messages without the oldest, about `share` of them by size: never the first `rules`, nor
    the newest message of the user and what follows it. As they are if nothing can be left out.

    A result goes with its call: engines refuse one that answers nothing.
    """
    newest = max(
        (n for n, message in enumerate(messages) if message["role"] == "user"),
        default=len(messages) - 1,
    )
    sizes = [len(_encode(message)) for message in messages]
    most = share * sum(sizes[rules:])
    cut, dropped = rules, 0
    while cut < newest and dropped < most:
        dropped += sizes[cut]
        cut += 1
    left = list(messages[cut:])
    made = {call["id"] for message in left for call in message.get("tool_calls", ())}
    return [
        *messages[:rules],
        *(m for m in left if m["role"] != "tool" or m["tool_call_id"] in made),
    ]
