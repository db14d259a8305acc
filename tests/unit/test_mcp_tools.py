"""MCP servers as tools: filters, approvals, names, and what is not told again."""

import pytest

from sessile.api.mcp_tools import (
    find_list,
    may_call,
    needs_approval,
    public,
    read_server,
    upstream_name,
)
from sessile.api.responses_tools import read_tools
from sessile.errors import InvalidRequest

READ = {"name": "read", "annotations": {"readOnlyHint": True}}
WRITE = {"name": "write", "annotations": None}


def server(**fields: object) -> dict:
    return {"type": "mcp", "server_label": "s", "server_url": "http://x/mcp", **fields}


@pytest.mark.parametrize(
    ("allowed", "names"),
    [
        (None, ["read", "write"]),
        (["write"], ["write"]),
        ([], []),
        ({"tool_names": ["read", "none"]}, ["read"]),
        ({"read_only": True}, ["read"]),
        ({"read_only": True, "tool_names": ["write"]}, []),
        ({}, ["read", "write"]),
    ],
)
def test_the_request_says_which_tools_may_be_called(allowed, names):
    """By name, by filter, or all of them."""
    given = read_server(server(allowed_tools=allowed), "tools[0]")
    assert [tool["name"] for tool in (READ, WRITE) if may_call(given, tool)] == names


@pytest.mark.parametrize(
    ("approval", "names"),
    [
        (None, ["read", "write"]),
        ("always", ["read", "write"]),
        ("never", []),
        ({"never": {"tool_names": ["read"]}}, ["write"]),
        ({"never": {"read_only": True}}, ["write"]),
        ({"always": {"tool_names": ["write"]}}, ["write"]),
        ({"always": {"tool_names": ["read"]}, "never": {"tool_names": ["read"]}}, []),
    ],
)
def test_calls_wait_for_approval_unless_they_need_none(approval, names):
    """Always is the default, and a filter says which do or do not."""
    given = read_server(server(require_approval=approval), "tools[0]")
    assert [tool["name"] for tool in (READ, WRITE) if needs_approval(given, tool)] == names


@pytest.mark.parametrize(
    "fields",
    [
        {"allowed_tools": 3}, {"allowed_tools": [3]}, {"allowed_tools": {"read_only": "x"}},
        {"require_approval": "sometimes"}, {"require_approval": {"maybe": {}}},
        {"headers": {"a": 1}}, {"headers": {"a": "b\r\nc: d"}}, {"authorization": 3},
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_server_is_named(fields):
    """By the place in the request."""
    with pytest.raises(InvalidRequest) as caught:
        read_server(server(**fields), "tools[0]")
    assert caught.value.param is not None and caught.value.param.startswith("tools[0].")


def test_names_are_plain_and_apart():
    """A function's name is short and plain, and no two tools share one."""
    assert upstream_name("s", "read") == "s__read"
    odd = {upstream_name("s", name) for name in ("a b", "a.b", "a/b", "a" * 90, "a" * 91)}
    assert len(odd) == 5 and all(len(name) <= 64 and name.isascii() for name in odd)


def test_secrets_are_not_told_again():
    """The response names the server, not what lets one in."""
    given = server(authorization="secret", headers={"x-key": "secret"})
    assert "secret" not in repr(public(given))
    assert "secret" not in repr(read_tools({"tools": [given]}, True).told)


def test_a_list_is_found_in_the_conversation():
    """The newest of the server's that did not fail."""

    def listing(label, *names, error=None):
        tools = [{"name": name} for name in names]
        return {"type": "mcp_list_tools", "server_label": label, "tools": tools, "error": error}

    items = [listing("s", "a"), listing("s", "b"), listing("t", "c"), listing("s", error="gone")]
    assert find_list(items, "s") == [{"name": "b"}]
    assert find_list(items, "u") is None


def test_a_choice_of_a_server_shows_its_tools_only():
    """With a tool's name that one is to be called, without any of them."""
    body = {"tools": [server(), {"type": "function", "name": "f"}]}
    listed = {"s": [READ, WRITE]}
    chosen = {**body, "tool_choice": {"type": "mcp", "server_label": "s"}}
    fields = read_tools(chosen, True).chat(listed)
    assert [tool["function"]["name"] for tool in fields["tools"]] == ["s__read", "s__write"]
    assert fields["tool_choice"] == "required"
    chosen = {**body, "tool_choice": {"type": "mcp", "server_label": "s", "name": "read"}}
    fields = read_tools(chosen, True).chat(listed)
    assert fields["tool_choice"] == {"type": "function", "function": {"name": "s__read"}}
    with pytest.raises(InvalidRequest):
        read_tools(chosen, True).chat({"s": [WRITE]})
    assert read_tools(body, True).chat(listed, closed=True)["tool_choice"] == "none"
