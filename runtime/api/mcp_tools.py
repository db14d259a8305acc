"""An MCP server as a tool of a response: what is checked, which of its tools the model may call,
and which calls a person must approve. Pure; `mcp_client` speaks to the server."""

import re
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import Any

from sessile.api.fields import flag_of, name_of, object_of, one_of, shown, text_of
from sessile.errors import InvalidRequest, NotSupported

Tool = Mapping[str, Any]

_LONGEST_NAME = 64  # what engines and their parsers take for a function's name
_SECRET = ("authorization", "headers")


def read_server(tool: Tool, where: str) -> dict[str, Any]:
    """A tool of type `mcp`, checked. Raises `InvalidRequest` or `NotSupported`."""
    label = name_of(tool, "server_label", f"{where}.server_label")
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", label):
        raise InvalidRequest(
            f"{where}.server_label must be 1 to 64 letters, digits, - or _",
            param=f"{where}.server_label",
        )
    for absent in ("connector_id", "tunnel_id"):
        if tool.get(absent) is not None:
            raise NotSupported(
                f"{where}.{absent} is not supported: give server_url", param=f"{where}.{absent}"
            )
    url = name_of(tool, "server_url", f"{where}.server_url")
    if not url.startswith(("http://", "https://")):
        raise InvalidRequest(
            f"{where}.server_url must be an http or https URL", param=f"{where}.server_url"
        )
    for name, value in object_of(tool, "headers", f"{where}.headers").items():
        if not (
            isinstance(value, str) and (name + value).isascii() and (name + value).isprintable()
        ):
            raise InvalidRequest(
                f"{where}.headers must be an object of printable strings", param=f"{where}.headers"
            )
    for text in ("authorization", "server_description"):
        if tool.get(text) is not None:
            text_of(tool, text, f"{where}.{text}")
    if tool.get("allowed_tools") is not None:
        _check_filter(tool["allowed_tools"], f"{where}.allowed_tools")
    approval, at = tool.get("require_approval"), f"{where}.require_approval"
    if isinstance(approval, Mapping):
        for key, given in approval.items():
            one_of(key, ("always", "never"), at)
            _check_filter(given, f"{at}.{key}")
    elif approval is not None:
        one_of(approval, ("always", "never"), at)
    return dict(tool)


def public(tool: Tool) -> dict[str, Any]:
    """The tool as it is told and stored: without what lets one in."""
    return {name: value for name, value in tool.items() if name not in _SECRET}


def may_call(server: Tool, tool: Tool) -> bool:
    """Whether the request lets the model call this tool of the server."""
    allowed = server.get("allowed_tools")
    return allowed is None or _matches(allowed, tool)


def needs_approval(server: Tool, tool: Tool) -> bool:
    """Whether a call of this tool waits for a person: always, unless the request says otherwise."""
    asked = server.get("require_approval")
    if isinstance(asked, Mapping):
        if asked.get("never") is not None and _matches(asked["never"], tool):
            return False
        return asked.get("always") is None or _matches(asked["always"], tool)
    return asked != "never"


def upstream_name(label: str, name: str) -> str:
    """What engines call a server's tool. The same in every turn: earlier calls of it stand in the
    prompt under this name."""
    plain = re.sub(r"[^A-Za-z0-9_-]", "_", f"{label}__{name}")
    if len(plain) <= _LONGEST_NAME and plain == f"{label}__{name}":
        return plain
    digest = blake2b(f"{label}\x00{name}".encode(), digest_size=4).hexdigest()
    return f"{plain[: _LONGEST_NAME - 9]}_{digest}"


def find_list(items: Sequence[Tool], label: str) -> list[dict[str, Any]] | None:
    """The tools of a server as an earlier turn has listed them, which saves listing them again."""
    for item in reversed(items):
        if item.get("type") == "mcp_list_tools" and item.get("server_label") == label:
            tools = item.get("tools")
            if item.get("error") is None and isinstance(tools, list):
                return [tool for tool in tools if isinstance(tool, dict) and tool.get("name")]
    return None


def _check_filter(given: Any, where: str) -> None:
    if isinstance(given, Mapping):
        flag_of(given, "read_only", False, f"{where}.read_only")
        names = given.get("tool_names") or []
    else:
        names = given
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise InvalidRequest(
            f"{where} must be a list of tool names or a filter, not {shown(given)}", param=where
        )


def _matches(given: Any, tool: Tool) -> bool:
    """Whether a tool passes a list of names or a filter; a filter that says nothing lets all by."""
    if not isinstance(given, Mapping):
        return tool["name"] in given
    names = given.get("tool_names")
    if names is not None and tool["name"] not in names:
        return False
    wanted = given.get("read_only")
    hints = tool.get("annotations") or {}
    return wanted is None or wanted == bool(hints.get("readOnlyHint"))
