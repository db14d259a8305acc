"""Plain functions as tools: their JSON schema, their arguments and their results. Pure.

The schema comes from the type hints, through msgspec, so dataclasses, enums, TypedDicts and
`Annotated[..., msgspec.Meta(...)]` work; descriptions come from the docstring (`Args:` sections
and `:param name:` lines).
"""

import inspect
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, get_type_hints

import msgspec

from sessile.client.events import ToolCall, ToolResult
from sessile.errors import InvalidRequest

_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_SECTION = re.compile(r"^(Args|Arguments|Parameters|Returns|Raises|Yields|Examples?|Notes?):\s*$")
_ARGUMENT = re.compile(r"^(\w+)\s*(?:\([^)]*\))?:\s*(.*)$")
_SPHINX = re.compile(r"^:param (?:[^:]*\s)?(\w+):\s*(.*)$")


@dataclass(frozen=True)
class Tool:
    """A function that the model may call; made once a session, by `read_tools`."""

    function: Callable[..., Any]
    name: str
    description: str
    parameters: dict[str, Any]
    arguments: type[msgspec.Struct]

    @property
    def is_async(self) -> bool:
        """Whether calling it gives a coroutine."""
        return inspect.iscoroutinefunction(self.function)

    def as_sent(self) -> dict[str, Any]:
        """The tool as `response.create` carries it."""
        return {
            "type": "function",
            "name": self.name,
            "description": self.description,
            "parameters": self.parameters,
            "strict": False,
        }

    def bind(self, arguments: str) -> dict[str, Any]:
        """The keyword arguments that the model's JSON gives.

        Numbers in strings are taken as numbers, since small models write them so. Raises
        `msgspec.MsgspecError`, whose sentence names the argument at fault.
        """
        values = msgspec.json.decode(arguments or "{}", type=self.arguments, strict=False)
        given = {name: getattr(values, name) for name in self.arguments.__struct_fields__}
        return {name: value for name, value in given.items() if value is not msgspec.UNSET}


def read_tools(functions: Iterable[Callable[..., Any]]) -> dict[str, Tool]:
    """Tools by name; raises `InvalidRequest` for a function that cannot be one."""
    tools: dict[str, Tool] = {}
    for function in functions:
        tool = read_tool(function)
        if tool.name in tools:
            raise InvalidRequest(f"two tools are named {tool.name}", param="tools")
        tools[tool.name] = tool
    return tools


def read_tool(function: Callable[..., Any]) -> Tool:
    """One function as a tool."""
    name = getattr(function, "__name__", type(function).__name__)
    if not _NAME.fullmatch(name):
        raise InvalidRequest(
            f"{name} cannot be a tool's name; give a named function", param="tools"
        )
    summary, described = _read_docstring(inspect.getdoc(function) or "")
    try:
        hints = get_type_hints(function, include_extras=True)
        fields, defaults = _read_parameters(function, hints)
        arguments = msgspec.defstruct(name, fields, kw_only=True, forbid_unknown_fields=True)
        _, components = msgspec.json.schema_components([arguments])
    except (TypeError, NameError, ValueError) as error:
        raise InvalidRequest(f"{name} cannot be a tool: {error}", param="tools") from error
    parameters = components.pop(name)
    del parameters["title"]
    for argument, text in described.items():
        if argument in parameters["properties"]:
            parameters["properties"][argument].setdefault("description", text)
    for argument, default in defaults.items():
        if isinstance(default, str | int | float | bool):
            parameters["properties"][argument]["default"] = default
    if components:
        parameters["$defs"] = components
    return Tool(function, name, summary, parameters, arguments)


def _read_parameters(
    function: Callable[..., Any], hints: dict[str, Any]
) -> tuple[list[tuple[str, Any] | tuple[str, Any, Any]], dict[str, Any]]:
    """The struct fields of a function's parameters, and their defaults.

    A parameter with a default may be absent; the function's own default then applies.
    """
    fields: list[tuple[str, Any] | tuple[str, Any, Any]] = []
    defaults: dict[str, Any] = {}
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            raise TypeError(f"its parameter {parameter} cannot be given by name")
        hint = hints.get(parameter.name, Any)
        if parameter.default is parameter.empty:
            fields.append((parameter.name, hint))
        else:
            fields.append((parameter.name, hint | msgspec.UnsetType, msgspec.UNSET))
            defaults[parameter.name] = parameter.default
    return fields, defaults


def _read_docstring(doc: str) -> tuple[str, dict[str, str]]:
    """What the function does, and what each argument is."""
    summary: list[str] = []
    described: dict[str, str] = {}
    section = argument = ""
    for line in doc.splitlines():
        stripped = line.strip()
        if heading := _SECTION.match(line):
            section, argument = heading[1], ""
        elif sphinx := _SPHINX.match(stripped):
            section, argument = "Args", sphinx[1]
            described[argument] = sphinx[2]
        elif not section:
            summary.append(line)
        elif section in ("Args", "Arguments", "Parameters") and stripped:
            if stripped.startswith(":"):
                argument = ""
            elif (named := _ARGUMENT.match(stripped)) and len(line) - len(line.lstrip()) <= 4:
                argument = named[1]
                described[argument] = named[2]
            elif argument:
                described[argument] = f"{described[argument]} {stripped}".strip()
    return "\n".join(summary).strip(), described


def succeeded(call: ToolCall, value: Any) -> ToolResult:
    """A tool's return value as the model reads it: text as it is, the rest as JSON."""
    if isinstance(value, str):
        return ToolResult(call.id, call.name, value)
    try:
        return ToolResult(call.id, call.name, msgspec.json.encode(value).decode())
    except (TypeError, msgspec.MsgspecError):
        return ToolResult(call.id, call.name, str(value))


def failed(call: ToolCall, error: Exception) -> ToolResult:
    """A tool's exception as the model reads it; the turn goes on."""
    return ToolResult(call.id, call.name, f"{type(error).__name__}: {error}", failed=True)


def unknown(call: ToolCall, tools: Iterable[str]) -> ToolResult:
    """The answer to a call of a tool that there is not."""
    names = ", ".join(tools) or "none"
    text = f"there is no tool named {call.name}; the tools are: {names}"
    return ToolResult(call.id, call.name, text, failed=True)
