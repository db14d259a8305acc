"""Items as the API lists them: each with an id and whole, otherwise as the client gave it. Pure."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sessile.api.fields import one_of, shown
from sessile.errors import InvalidRequest

Item = dict[str, Any]

MOST_LISTED = 100
_LISTED = 20
_PREFIX = {
    "message": "msg", "reasoning": "rs", "function_call": "fc", "function_call_output": "fco",
    "custom_tool_call": "ctc", "custom_tool_call_output": "ctco", "compaction": "cmp",
    "mcp_list_tools": "mcpl", "mcp_call": "mcp", "mcp_approval_request": "mcpr",
    "mcp_approval_response": "mcpa",
}  # fmt: skip
_WITH_STATUS = frozenset(
    ("message", "function_call", "function_call_output", "custom_tool_call_output")
)
_PLACE = re.compile(r"[a-z]+_([0-9a-f]{32})(in)?([0-9a-f]{2,8})")


def listed_items(items: Iterable[Mapping[str, Any]], home: str) -> list[Item]:
    """The items with what a list must give of each. Ids come from `home`, a response's id or other
    hexadecimal digits, and the item's place: the same each time it is listed."""
    return [_listed(item, home, index) for index, item in enumerate(items)]


def place_of(id: str) -> tuple[str, bool, int] | None:
    """The response that an id of ours belongs to, whether it is of its input, and its place."""
    found = _PLACE.fullmatch(id)
    return found and (f"resp_{found[1]}", found[2] is not None, int(found[3], 16))


def read_page(order: str | None, limit: str | None, default: str) -> tuple[bool, int]:
    """Whether the newest come first, and how many. Raises `InvalidRequest`."""
    order = one_of(order or default, ("asc", "desc"), "order")
    if limit is None:
        return order == "desc", _LISTED
    if not (limit.isascii() and limit.isdigit() and 1 <= int(limit) <= MOST_LISTED):
        raise InvalidRequest(
            f"limit must be a whole number from 1 to {MOST_LISTED}, not {shown(limit)}",
            param="limit",
        )
    return order == "desc", int(limit)


def page_of(found: Sequence[Item], limit: int) -> dict[str, Any]:
    """A list as OpenAI gives it; `found` is what there is, at least one more if there is more."""
    data = list(found[:limit])
    return {
        "object": "list",
        "data": data,
        "first_id": data[0]["id"] if data else "",
        "last_id": data[-1]["id"] if data else "",
        "has_more": len(found) > limit,
    }


def page_of_all(
    items: Sequence[Item], *, after: str | None, limit: int, newest_first: bool
) -> dict[str, Any]:
    """A page of items that are all here. Raises `InvalidRequest` for an `after` that is none."""
    ordered = list(reversed(items)) if newest_first else list(items)
    if after is not None:
        ids = [item["id"] for item in ordered]
        if after not in ids:
            raise InvalidRequest(f"there is no item {shown(after)} to list from", param="after")
        ordered = ordered[ids.index(after) + 1 :]
    return page_of(ordered, limit)


def _listed(item: Mapping[str, Any], home: str, index: int) -> Item:
    kind = item.get("type", "message")
    prefix = _PREFIX.get(kind, "item")
    made = f"{prefix}_{home.removeprefix('resp_')}in{index:02x}"
    whole = {**item, "type": kind, "id": item.get("id") or made}
    if kind in _WITH_STATUS and whole.get("status") is None:
        whole["status"] = "completed"
    if kind == "message":
        whole["content"] = _parts(item.get("content"), item.get("role") == "assistant")
    elif kind == "reasoning":
        whole.setdefault("summary", [])
    return whole


def _parts(content: Any, said: bool) -> list[Item]:
    """A message's content in parts, each with the fields that clients' types demand."""
    if isinstance(content, str):
        content = [{"type": "output_text" if said else "input_text", "text": content}]
    parts = []
    for part in content or ():
        if part.get("type") == "output_text":
            part = {"annotations": [], **part}
        elif part.get("type") == "input_image":
            part = {"detail": "auto", **part}
        parts.append(part)
    return parts
