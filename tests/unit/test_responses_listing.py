"""Items as they are listed: whole, with ids that stay, in pages."""

import pytest
from openai.types.conversations import ConversationItem
from openai.types.responses import ResponseItem
from pydantic import TypeAdapter

from sessile.api.responses_listing import listed_items, page_of_all, place_of, read_page
from sessile.errors import InvalidRequest

HOME = "resp_" + "ab" * 16


def test_every_kind_is_valid_for_openais_types():
    """What is missing is filled in, what was given stays."""
    given = [
        {"role": "user", "content": "hi"},
        {"role": "user", "content": [{"type": "input_image", "image_url": "data:,x"}]},
        {"role": "assistant", "content": [{"type": "output_text", "text": "yes"}]},
        {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c", "output": "3"},
        {"type": "custom_tool_call_output", "call_id": "d", "output": "3"},
        {"type": "reasoning", "content": [{"type": "reasoning_text", "text": "h"}]},
        {"type": "mcp_approval_response", "approval_request_id": "r", "approve": True},
        {"type": "compaction", "encrypted_content": "x"},
    ]
    items = listed_items(given, HOME)
    for item, before in zip(items, given, strict=True):
        for kind in (ResponseItem, ConversationItem):
            TypeAdapter(kind).validate_python(item)
        kept = {name: value for name, value in before.items() if name != "content"}
        assert kept.items() <= item.items()
    assert items[0]["content"] == [{"type": "input_text", "text": "hi"}]
    assert listed_items(given, HOME) == items
    assert listed_items(items, HOME) == items


def test_an_id_says_where_its_item_is():
    """Of input and output alike; other ids say nothing."""
    (item,) = listed_items([{"role": "user", "content": "hi"}], HOME)
    assert place_of(item["id"]) == (HOME, True, 0)
    assert place_of("msg_" + "ab" * 16 + "0b") == (HOME, False, 11)
    assert place_of("msg_1") is place_of("") is None


def test_pages():
    """In both orders, from an item on, with word of whether there is more."""
    items = [{"id": str(n)} for n in range(5)]

    def page(after=None, limit=2, newest_first=False):
        found = page_of_all(items, after=after, limit=limit, newest_first=newest_first)
        return [item["id"] for item in found["data"]], found["has_more"]

    assert page() == (["0", "1"], True)
    assert page("1", newest_first=True) == (["0"], False)
    assert page("4") == ([], False)
    assert page(limit=5) == (["0", "1", "2", "3", "4"], False)
    with pytest.raises(InvalidRequest):
        page("9")


@pytest.mark.parametrize(
    ("order", "limit"), [("up", None), (None, "0"), (None, "101"), (None, "x"), (None, "-1")]
)
def test_a_bad_page_is_named(order, limit):
    """An order or a limit that cannot be one."""
    with pytest.raises(InvalidRequest):
        read_page(order, limit, "desc")
    assert read_page(None, None, "desc") == (True, 20)
