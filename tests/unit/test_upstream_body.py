"""What an engine is sent: the client's bytes with fields put in."""

import msgspec
import pytest

from sessile.upstream_body import splice, with_usage


def test_new_fields_are_spliced_in_and_the_rest_stays_as_written():
    """Spacing, order and escapes of the client's body survive."""
    body = b'  { "b" : 1.50, "a":"\\u00e9" }'
    out = splice(body, msgspec.json.decode(body), {"rid": "x"})
    assert out == b'{"rid":"x", "b" : 1.50, "a":"\\u00e9" }'
    assert splice(b"{ }", {}, {"rid": "x"}) == b'{"rid":"x" }'
    assert splice(body, {"b": 1}, {}) == body


def test_fields_of_ours_win_over_the_client_s():
    """A client does not choose its cache namespace."""
    body = b'{"cache_salt":"theirs","b":1}'
    out = splice(body, msgspec.json.decode(body), {"cache_salt": "ours"})
    assert msgspec.json.decode(out) == {"cache_salt": "ours", "b": 1}
    assert msgspec.json.decode(splice(b"", {"b": 1}, {"c": 2})) == {"b": 1, "c": 2}


@pytest.mark.parametrize(
    ("options", "added"),
    [
        (None, {"include_usage": True}),
        ({"x": 1}, {"x": 1, "include_usage": True}),
        ({"include_usage": True}, None),
    ],
)
def test_usage_is_always_asked_for_once(options, added):
    """Other stream options of the client's are kept."""
    document = {} if options is None else {"stream_options": options}
    assert with_usage(document).get("stream_options") == added
