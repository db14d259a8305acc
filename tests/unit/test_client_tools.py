"""Plain functions as tools: schema, arguments, results."""

from dataclasses import dataclass
from enum import Enum
from typing import Annotated, Any, Literal

import msgspec
import pytest

from sessile.client.events import ToolCall
from sessile.client.tools import failed, read_tool, read_tools, succeeded, unknown
from sessile.errors import InvalidRequest

CALL = ToolCall("call_1", "weather", "{}")


@dataclass
class Place:
    name: str
    lat: float = 0.0


class Unit(Enum):
    C = "c"
    F = "f"


def weather(city: str, days: int = 3, unit: Literal["c", "f"] = "c") -> str:
    """The weather of a city.

    It is made up.

    Args:
        city: where, in English,
            without the country
        days (int): how many days ahead

    Returns:
        city: not an argument
    """
    return f"{city} {days} {unit}"


def test_schema_comes_from_hints_and_docstring() -> None:
    """Types, required parameters, defaults and descriptions are those of the function."""
    tool = read_tool(weather)
    assert tool.as_sent() == {
        "type": "function",
        "name": "weather",
        "description": "The weather of a city.\n\nIt is made up.",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "description": "where, in English, without the country"},
                "days": {"type": "integer", "description": "how many days ahead", "default": 3},
                "unit": {"enum": ["c", "f"], "default": "c"},
            },
            "required": ["city"],
            "additionalProperties": False,
        },
        "strict": False,
    }


def test_sphinx_docstrings_describe_arguments_too() -> None:
    """`:param name:` lines are read, with or without a type."""

    def f(a: int, b: str) -> None:
        """Do it.

        :param a: the first
        :param str b: the second
        :return: nothing
        """

    properties = read_tool(f).parameters["properties"]
    assert [properties[name]["description"] for name in "ab"] == ["the first", "the second"]


def test_structured_arguments_arrive_as_their_types() -> None:
    """Dataclasses, enums, lists and annotations are in the schema and are built for the call."""

    def f(place: Place, units: list[Unit], n: Annotated[int, msgspec.Meta(ge=1)]) -> None: ...

    tool = read_tool(f)
    assert set(tool.parameters["$defs"]) == {"Place", "Unit"}
    assert tool.parameters["properties"]["n"] == {"type": "integer", "minimum": 1}
    bound = tool.bind('{"place":{"name":"Oslo"},"units":["f"],"n":"2"}')
    assert bound == {"place": Place("Oslo"), "units": [Unit.F], "n": 2}


def test_absent_arguments_leave_the_functions_own_defaults() -> None:
    """A mutable or odd default is the function's affair."""

    def f(a: int = 7, b: list[int] = [1]) -> tuple[Any, ...]:  # noqa: B006
        return a, b

    tool = read_tool(f)
    assert tool.function(**tool.bind("{}")) == (7, [1])
    assert tool.function(**tool.bind("")) == (7, [1])


@pytest.mark.parametrize("arguments", ['{"city":1}', '{"town":"x"}', "{}", "not json", "[]"])
def test_wrong_arguments_name_what_is_wrong(arguments: str) -> None:
    """What the model got wrong is said in one sentence, for it to read."""
    with pytest.raises(msgspec.MsgspecError):
        read_tool(weather).bind(arguments)


def test_functions_that_cannot_be_tools_are_refused() -> None:
    """Lambdas, catch-all parameters, unknown hints and equal names are refused when given."""

    def spread(*parts: str) -> None: ...
    def odd(a: "Nowhere") -> None: ...  # type: ignore[name-defined]  # noqa: F821
    def strange(a: object, b: complex) -> None: ...

    for bad in (lambda: 1, spread, odd, strange):
        with pytest.raises(InvalidRequest):
            read_tool(bad)
    with pytest.raises(InvalidRequest, match="two tools are named weather"):
        read_tools([weather, weather])


def test_results_are_text() -> None:
    """Text goes as it is, data as JSON, anything else as its own text."""
    assert succeeded(CALL, "sunny").output == "sunny"
    assert succeeded(CALL, {"t": [1, None]}).output == '{"t":[1,null]}'
    assert succeeded(CALL, None).output == "null"
    assert succeeded(CALL, Place("Oslo")).output == '{"name":"Oslo","lat":0.0}'
    assert succeeded(CALL, 1 + 2j).output == "(1+2j)"


def test_failures_are_text_too() -> None:
    """An exception and an unknown tool come back as something the model can act on."""
    result = failed(CALL, ValueError("no such city"))
    assert (result.failed, result.output) == (True, "ValueError: no such city")
    assert "there is no tool named weather; the tools are: a, b" in unknown(CALL, "ab").output
