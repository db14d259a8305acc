"""Keys of conversations and prompts: equal exactly where they agree, whatever a client does."""

from hypothesis import given
from hypothesis import strategies as st

from sessile.sessions.prefix import BLOCK_BYTES, Lineage, read_prompt

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


def test_escapes_in_arguments_do_not_hide_a_reply():
    """A client that has read a call's arguments writes letters for escapes; what is no JSON is
    taken as it is."""
    for sent, written in (('{"a":"Z\\u00fcrich"}', '{"a": "Zürich"}'), ("{\\u00", "{\\u00")):
        one, two = (
            {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": text}}]}
            for text in (sent, written)
        )
        assert Lineage([USER]).after(one) == Lineage([USER]).after(two)


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


def prompt(*texts, tenant="t", **fields):
    """What is read of a chat of user messages."""
    messages = [{"role": "user", "content": text} for text in texts]
    return read_prompt({"messages": messages, **fields}, tenant)


def test_prompts_that_begin_alike_share_their_first_blocks():
    """Up to the block in which they differ; the last one, not full, is none."""
    one = prompt("x" * 5000, "one")
    two = prompt("x" * 5000, "two")
    assert len(one.blocks) == one.size // BLOCK_BYTES == 4
    assert one.blocks == two.blocks
    other = prompt("x" * 2500 + "y" * 2500)
    assert other.blocks[:2] == one.blocks[:2]
    assert not set(other.blocks[2:]) & set(one.blocks)


def test_a_block_stands_for_all_before_it():
    """The same text at the same place behind another beginning is another block."""
    one, two = prompt("a" * 1500 + "z" * 5000), prompt("b" * 1500 + "z" * 5000)
    assert not set(one.blocks) & set(two.blocks)


def test_how_a_prompt_opens_is_known_of_one_that_fills_no_block_too():
    """By its first block, else by all of it."""
    long = prompt("x" * 5000, "one")
    assert long.opening == long.blocks[0] == prompt("x" * 5000, "two").opening
    short = prompt("say hello")
    assert not short.blocks and short.opening == prompt("say hello").opening != 0
    assert short.opening != prompt("say goodbye").opening
    assert short.opening != prompt("say hello", tenant="u").opening


def test_tenants_share_no_block():
    """However alike their prompts are."""
    assert not set(prompt("x" * 5000).blocks) & set(prompt("x" * 5000, tenant="u").blocks)


def test_tools_stand_before_the_messages():
    """Other tools are another prompt; their keys may come in any order."""
    tools = [{"type": "function", "function": {"name": "f"}}]
    turned = [{"function": {"name": "f"}, "type": "function"}]
    with_tools = prompt("x" * 5000, tools=tools)
    assert with_tools == prompt("x" * 5000, tools=turned)
    assert not set(with_tools.blocks) & set(prompt("x" * 5000).blocks)


def test_a_completions_prompt_is_read_and_anything_else_is_empty():
    """Text is text; tokens and lists are left to the engine."""
    assert len(read_prompt({"prompt": "x" * 2048}, "t").blocks) == 2
    for document in ({}, {"prompt": [1, 2]}, {"messages": "x" * 5000}):
        assert read_prompt(document, "t") == ((), 0, 0)


@given(st.lists(st.text(max_size=3000), max_size=4), st.lists(st.text(max_size=3000), max_size=4))
def test_an_appended_message_extends_the_blocks(head, tail):
    """The blocks of a conversation are the first of any continuation's."""
    before, after = prompt(*head), prompt(*head, *tail)
    assert after.blocks[: len(before.blocks)] == before.blocks
    assert len(after.blocks) == after.size // BLOCK_BYTES
