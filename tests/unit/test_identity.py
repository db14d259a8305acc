"""Which session a request names, in the order that the field's clients name it."""

import pytest

from sessile.errors import InvalidRequest
from sessile.sessions.identity import read_claims

ORDER = [
    b"x-session-id", b"x-claude-code-session-id", b"session-id", b"session_id",
    b"x-session-affinity", b"x-amp-thread-id", b"x-dynamo-session-id", b"x-smg-routing-key",
    b"x-litellm-session-id",
]  # fmt: skip


def test_headers_count_in_their_order_whatever_order_they_come_in():
    """The first of the list that is present wins."""
    headers = [(name, name + b"-id") for name in reversed(ORDER)]
    for name in ORDER:
        assert read_claims(headers, {}).explicit == name.decode() + "-id"
        headers = [h for h in headers if h[0] != name]
    assert read_claims(headers, {}).explicit is None


def test_headers_count_before_the_body_and_its_fields_in_order():
    """Header, session_id, metadata.session_id, then what Claude Code packs into user_id."""
    packed = "user_abc_account__session_0b71b8c2-91a5-4f6e-9d1c-0123456789ab"
    body = {"session_id": "one", "metadata": {"session_id": "two", "user_id": packed}}
    assert read_claims([(b"x-session-id", b"zero")], body).explicit == "zero"
    assert read_claims([], body).explicit == "one"
    del body["session_id"]
    assert read_claims([], body).explicit == "two"
    del body["metadata"]["session_id"]
    assert read_claims([], body).explicit == "0b71b8c2-91a5-4f6e-9d1c-0123456789ab"


@pytest.mark.parametrize(
    ("user", "session"),
    [
        ('{"device_id":"d","account_uuid":"","session_id":"s"}', "s"),
        ('{"session_id":""}', None),
        ('{"session_id":7}', None),
        ('{"device_id":"d"}', None),
        ("{not json", None),
        ("u_session_short", None),
    ],
)
def test_claude_code_packs_its_session_in_json_too(user, session):
    """Its newer form; a user id that only looks like it names nobody."""
    assert read_claims([], {"metadata": {"user_id": user}}).explicit == session


def test_weak_hints_group_but_name_nobody():
    """A prompt cache key or a user is no conversation."""
    claims = read_claims([], {"prompt_cache_key": "k", "user": "u"}, [])
    assert claims.explicit is None and claims.group == "k"
    assert read_claims([], {"user": "u"}).group == "u"
    assert read_claims([], {"metadata": {"user_id": "someone"}}).explicit is None


def test_lineage_is_looked_at_only_where_nothing_was_named():
    """Hashing a long history is not free."""
    messages = [{"role": "user", "content": "hi"}]
    assert read_claims([], {}, messages).lineage is not None
    assert read_claims([(b"x-session-id", b"s")], {}, messages).lineage is None


def test_a_parent_may_be_named_beside_the_session():
    """Sub-agents say who started them."""
    headers = [(b"x-session-id", b"child"), (b"x-dynamo-parent-session-id", b"p")]
    assert read_claims(headers, {}).parent == "p"


@pytest.mark.parametrize("value", ["", "x" * 257, "a\nb", 7, ["s"]])
def test_an_id_that_cannot_be_one_is_refused_by_name(value):
    """Empty, too long, control characters, not a string."""
    with pytest.raises(InvalidRequest, match="session_id") as caught:
        read_claims([], {"session_id": value})
    assert caught.value.param == "session_id"


def test_one_header_with_two_values_is_refused():
    """Which one was meant cannot be known; the same value twice is no harm."""
    with pytest.raises(InvalidRequest, match="twice"):
        read_claims([(b"x-session-id", b"a"), (b"x-session-id", b"b")], {})
    assert read_claims([(b"x-session-id", b"a")] * 2, {}).explicit == "a"
    with pytest.raises(InvalidRequest, match="UTF-8"):
        read_claims([(b"x-session-id", b"\xff")], {})
