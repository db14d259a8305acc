"""The tools of a Responses request: what is checked, how engines are told of them, and what a call
by an engine then means. Pure.

Engines know functions only. A custom tool is one whose only argument is a string, a tool of an MCP
server one that the router calls itself.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import msgspec

from sessile.api.fields import name_of, one_of, only, shown
from sessile.api.mcp_tools import may_call, needs_approval, public, read_server, upstream_name
from sessile.errors import InvalidRequest, NotSupported

Tool = Mapping[str, Any]
Listed = Mapping[str, Sequence[Tool]]
"""The tools of each MCP server, by its label."""

_HOSTED = frozenset(
    (
        "apply_patch", "code_interpreter", "computer", "computer_use", "computer_use_preview",
        "file_search", "image_generation", "local_shell", "programmatic_tool_calling", "shell",
        "tool_search", "web_search", "web_search_2025_08_26", "web_search_preview",
        "web_search_preview_2025_03_11",
    )
)  # fmt: skip
_COMMON = ("type", "name", "description", "async", "defer_loading", "allowed_callers")
# NOTE: what a result looks like is for the client's own use; chat templates have no place for it.
_FUNCTION = (*_COMMON, "parameters", "strict", "output_schema")
_CUSTOM = (*_COMMON, "format")
_OTHERWISE = "; give a function, a custom tool or an MCP server that does it"


class Called(msgspec.Struct, frozen=True):
    """What a function's name stands for. `asks`: a person must approve the call first."""

    kind: Literal["function", "custom", "mcp"]
    name: str
    server: str = ""
    asks: bool = False


class Toolset(msgspec.Struct, frozen=True):
    """The tools of one request and which of them it wants called; made by `read_tools`."""

    tools: list[dict[str, Any]] = []
    choice: str | dict[str, Any] = "auto"
    parallel: bool = True

    @property
    def servers(self) -> list[dict[str, Any]]:
        """The MCP servers."""
        return [tool for tool in self.tools if tool["type"] == "mcp"]

    @property
    def told(self) -> list[dict[str, Any]]:
        """The tools as the response gives them back."""
        return [public(tool) if tool["type"] == "mcp" else tool for tool in self.tools]

    def called(self, listed: Listed) -> dict[str, Called]:
        """What each name means that an engine may call."""
        names: dict[str, Called] = {}
        for tool in self.tools:
            if tool["type"] != "mcp":
                names[tool["name"]] = Called(tool["type"], tool["name"])
                continue
            label = tool["server_label"]
            for found in listed.get(label, ()):
                if may_call(tool, found):
                    asks = needs_approval(tool, found)
                    name = upstream_name(label, found["name"])
                    names[name] = Called("mcp", found["name"], label, asks)
        return names

    def chat(self, listed: Listed, *, closed: bool = False) -> dict[str, Any]:
        """The fields of a chat request; `closed`: no tool is to be called any more."""
        functions = [
            function
            for tool in self.tools
            for function in _functions(tool, listed)
            if self._allows(tool, function["name"])
        ]
        if not functions:
            return {}
        return {
            "tools": [{"type": "function", "function": function} for function in functions],
            "parallel_tool_calls": self.parallel,
            "tool_choice": "none" if closed else self._chat_choice(listed),
        }

    def _allows(self, tool: Tool, name: str) -> bool:
        """Whether `allowed_tools` lets the model see it."""
        if isinstance(self.choice, str):
            return True
        if self.choice["type"] == "mcp" and self.choice.get("name") is None:
            return bool(tool.get("server_label") == self.choice["server_label"])
        if self.choice["type"] != "allowed_tools":
            return True
        for wanted in self.choice["tools"]:
            if wanted["type"] != tool["type"]:
                continue
            if tool["type"] == "mcp":
                label = tool["server_label"]
                named = wanted.get("name")
                if wanted.get("server_label") == label and (
                    named is None or upstream_name(label, named) == name
                ):
                    return True
            elif wanted.get("name") == name:
                return True
        return False

    def _chat_choice(self, listed: Listed) -> str | dict[str, Any]:
        choice = self.choice
        if isinstance(choice, str):
            return choice
        if choice["type"] == "allowed_tools":
            return str(choice["mode"])
        if choice["type"] == "mcp":
            if choice.get("name") is None:
                return "required"
            name = upstream_name(choice["server_label"], choice["name"])
            if name not in self.called(listed):
                raise InvalidRequest(
                    f"tool_choice names {shown(choice['name'])}, which MCP server "
                    f"{choice['server_label']!r} does not offer", param="tool_choice.name",
                )  # fmt: skip
        else:
            name = choice["name"]
        return {"type": "function", "function": {"name": name}}


def read_tools(body: Mapping[str, Any], parallel: bool) -> Toolset:
    """The tools of a request. Raises `InvalidRequest` or `NotSupported` naming the place."""
    given = body.get("tools")
    if given is None:
        given = []
    if not isinstance(given, list):
        raise InvalidRequest("tools must be a list", param="tools")
    tools = [_tool(tool, f"tools[{index}]") for index, tool in enumerate(given)]
    seen: set[tuple[str | None, str | None]] = set()
    for index, tool in enumerate(tools):
        name = (tool.get("server_label"), tool.get("name"))
        if name in seen:
            raise InvalidRequest(
                f"tools[{index}]: there are two tools of that name", param=f"tools[{index}]"
            )
        seen.add(name)
    return Toolset(tools, _choice(body, tools), parallel)


def _functions(tool: Tool, listed: Listed) -> list[dict[str, Any]]:
    if tool["type"] == "mcp":
        label = tool["server_label"]
        return [
            {
                "name": upstream_name(label, found["name"]),
                **_told(found, "description"),
                "parameters": found.get("input_schema") or {"type": "object"},
            }
            for found in listed.get(label, ())
            if may_call(tool, found)
        ]
    if tool["type"] == "custom":
        text = {"type": "string", "description": "What the tool is given, as plain text."}
        schema = {
            "type": "object",
            "properties": {"input": text},
            "required": ["input"],
            "additionalProperties": False,
        }
        return [{"name": tool["name"], **_told(tool, "description"), "parameters": schema}]
    return [{"name": tool["name"], **_told(tool, "description", "parameters", "strict")}]


def _told(tool: Tool, *names: str) -> dict[str, Any]:
    return {name: tool[name] for name in names if tool.get(name) is not None}


def _tool(tool: Any, where: str) -> dict[str, Any]:
    if not isinstance(tool, dict):
        raise InvalidRequest(f"{where} must be an object", param=where)
    kind = tool.get("type")
    if not isinstance(kind, str):
        raise InvalidRequest(f"{where}.type must be a string", param=f"{where}.type")
    if kind not in ("function", "custom", "mcp"):
        why = "needs a provider that runs it" if kind in _HOSTED else "is not known here"
        raise NotSupported(f"{where}: a tool of type {shown(kind)} {why}{_OTHERWISE}",
                           param=f"{where}.type")  # fmt: skip
    for name, allowed in (
        ("async", (False,)),
        ("defer_loading", (False,)),
        ("allowed_callers", (["direct"],)),
    ):
        if tool.get(name) is not None and tool[name] not in allowed:
            raise NotSupported(f"{where}.{name} is not supported", param=f"{where}.{name}")
    if kind == "mcp":
        return read_server(tool, where)
    only(tool, _FUNCTION if kind == "function" else _CUSTOM, where)
    name_of(tool, "name", f"{where}.name")
    if not isinstance(tool.get("description"), str | None):
        raise InvalidRequest(f"{where}.description must be a string", param=f"{where}.description")
    if kind == "custom":
        form = tool.get("format")
        if form is not None and (not isinstance(form, dict) or form.get("type") != "text"):
            raise NotSupported(
                f"{where}.format: only text is supported; no engine can be held to a grammar "
                "inside a call", param=f"{where}.format",
            )  # fmt: skip
        return tool
    if not isinstance(tool.get("parameters"), dict | None):
        raise InvalidRequest(
            f"{where}.parameters must be a JSON schema", param=f"{where}.parameters"
        )
    return {"strict": None, "parameters": None, **tool}


def _choice(body: Mapping[str, Any], tools: Sequence[Tool]) -> str | dict[str, Any]:
    choice = body.get("tool_choice")
    if choice is None:
        return "auto"
    named = isinstance(choice, dict)
    kind = choice.get("type") if named else choice
    if not named and kind in ("auto", "none", "required"):
        if kind == "required" and not tools:
            raise InvalidRequest(
                "tool_choice is required, and there are no tools", param="tool_choice"
            )
        return str(kind)
    if not named or not isinstance(kind, str):
        raise InvalidRequest(
            f"tool_choice must be auto, none, required or an object, not {shown(choice)}",
            param="tool_choice",
        )
    if kind == "allowed_tools":
        one_of(choice.get("mode"), ("auto", "required"), "tool_choice.mode")
        wanted = choice.get("tools")
        if not isinstance(wanted, list) or not wanted:
            raise InvalidRequest("tool_choice.tools must be a list", param="tool_choice.tools")
        for index, tool in enumerate(wanted):
            _known(tool, tools, f"tool_choice.tools[{index}]")
        return {"type": kind, "mode": choice["mode"], "tools": wanted}
    if kind not in ("function", "custom", "mcp"):
        raise NotSupported(f"tool_choice of type {shown(kind)} is not supported",
                           param="tool_choice.type")  # fmt: skip
    _known(choice, tools, "tool_choice")
    names = ("type", "server_label", "name") if kind == "mcp" else ("type", "name")
    return {name: choice[name] for name in names if choice.get(name) is not None}


def _known(wanted: Any, tools: Sequence[Tool], where: str) -> None:
    """A choice must be of a tool that is there."""
    if not isinstance(wanted, dict) or not isinstance(wanted.get("type"), str):
        raise InvalidRequest(f"{where} must be an object with a type", param=where)
    key = "server_label" if wanted["type"] == "mcp" else "name"
    name = name_of(wanted, key, f"{where}.{key}")
    if not isinstance(wanted.get("name"), str | None):
        raise InvalidRequest(f"{where}.name must be a string", param=f"{where}.name")
    if not any(tool["type"] == wanted["type"] and tool.get(key) == name for tool in tools):
        raise InvalidRequest(
            f"tool_choice names {shown(name)}, which is none of the tools", param=f"{where}.{key}"
        )
