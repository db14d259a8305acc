"""Lineage keys: equal exactly for conversations that agree, whatever a client does on the way."""

from hypothesis import given
from hypothesis import strategies as st

from sessile.sessions.prefix import Lineage

USER = {"role": "user", "content": "hi"}
REPLY = {"role": "assistant", "content": "hello"}


def test_a_request_that_extends_another_shows_the_key_after_its_reply():
    """The key stored after a turn is among those that its continuation knows, the deepest first."""
    key = Lineage([USER]).after(REPLY)
    longer = Lineage([USER, REPLY, {"role": "user", "content": "more"}])
    assert longer.known == (key,)
    after = longer.after({"role": "assistant", "content": "x"})
    assert Lineage([USER, REPLY, {"role": "user", "content": "more"},
                    {"role": "assistant", "content": "x"}, USER]).known == (after, key)  # fmt: skip


def test_openings_and_system_prompts_alone_identify_nobody():
    """Without an assistant message nothing is known, however long the prompt."""
    assert Lineage([{"role": "system", "content": "x" * 9000}, USER]).known == ()


def test_another_reply_is_another_conversation():
    """The same question answered differently does not continue the same session."""
    assert Lineage([USER]).after(REPLY) != Lineage([USER]).after({**REPLY, "content": "hey"})


def test_what_clients_do_to_a_reply_does_not_hide_it():
    """Trimmed text, parts for a string, null fields, re-written arguments: the key is the same."""
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
    said = {"role": "assistant", "content": " hello\n", "tool_calls": [call]}
    sent = {
        "role": "assistant",
        "content": [{"type": "text", "text": "hello"}],
        "refusal": None,
        "tool_calls": [{"function": {"name": "f", "arguments": '{"a":1}'}, "index": 0}],
    }
    assert Lineage([USER]).after(said) == Lineage([USER]).after(sent)


def test_content_of_other_kinds_counts():
    """Two images are two conversations."""
    image = [{"type": "image_url", "image_url": {"url": "data:1"}}]
    other = [{"type": "image_url", "image_url": {"url": "data:2"}}]
    one, two = ({"role": "user", "content": content} for content in (image, other))
    assert Lineage([one]).after(REPLY) != Lineage([two]).after(REPLY)


MESSAGES = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["user", "assistant", "tool"]), "content": st.text(max_size=8)}
    ),
    min_size=1,
    max_size=12,
)


@given(MESSAGES, MESSAGES)
def test_keys_depend_on_what_came_before_only(head, tail):
    """The keys of a conversation are those of any continuation of it, up to the depth kept."""
    before = Lineage(head).known
    after = Lineage([*head, *tail]).known
    fresh = sum(m["role"] == "assistant" for m in tail)
    kept = after[fresh:]
    assert before[: len(kept)] == kept
