"""The llama.cpp adapter on llama.cpp's own `llama-server`, as it answered; `record.py --folder
llama-server` records it anew. What it shares with the embedded build is in `test_engine*.py`."""

import json

from recorded_engines import replies, usage_of
from sessile.api.wire import engine_error
from sessile.engines.detect import LMSTUDIO, MODELS, OLLAMA, TGI, detect
from sessile.engines.kinds import engine
from sessile.errors import InvalidRequest, NotSupported, PromptTooLong
from sessile.relay import events, read_reply
from sessile.router.engine import Reply, Usage
from sessile.router.needs import AUDIO, IMAGES, TOOLS

ADAPTER = engine("llamacpp")


def answers(case: str) -> tuple[Reply, ...]:
    """The answers of a recorded case."""
    return replies("llama-server", case)


def usage(case: str) -> Usage:
    """The usage at the end of a recorded answer."""
    return usage_of(ADAPTER, *answers(case))


def test_it_is_known_at_its_url_alone() -> None:
    """By the owner of its models."""
    nothing = Reply(404, b"{}")
    told = {MODELS: answers("identity")[0], OLLAMA: nothing, TGI: nothing, LMSTUDIO: nothing}
    assert detect(told) == "llamacpp"


def test_a_restart_is_seen() -> None:
    """Its model and context, and an incarnation that is another one at each start."""
    first, restarted = (
        ADAPTER.read_identity(answers(case)) for case in ("identity", "identity_restarted")
    )
    assert first.models == restarted.models == ("smollm2",)
    assert first.context_tokens == 8192
    assert first.incarnation is not None and first.incarnation != restarted.incarnation
    ADAPTER.read_health(*answers("health"))


def test_what_its_model_lacks_is_told() -> None:
    """By `/props`; a build that does not say is taken to have all of it."""
    told = answers("identity")
    assert ADAPTER.read_identity(told).lacks == {IMAGES, AUDIO, TOOLS}
    props = json.loads(told[1].body)
    del props["modalities"], props["chat_template_caps"]["supports_tools"]
    silent = Reply(200, json.dumps(props).encode())
    assert ADAPTER.read_identity((told[0], silent, *told[2:])).lacks == frozenset()


def test_a_call_that_is_demanded_is_asked_for_as_it_understands() -> None:
    """It would take a function's name for auto."""
    tools = [{"type": "function", "function": {"name": name}} for name in ("add", "look")]
    only = {"tool_choice": "required", "tools": tools[1:]}
    for choice, fields in (("auto", {}), ("none", {}), ("required", {}), (tools[1], only)):
        assert ADAPTER.call_fields({"tools": tools, "tool_choice": choice}) == fields


def test_its_load_follows_what_runs() -> None:
    """Idle, one request running, and after its client hung up."""
    loads = [
        ADAPTER.read_load(answers(f"load_{when}"), 1.0) for when in ("idle", "busy", "after_hangup")
    ]
    assert [(load.running, load.waiting, load.slots) for load in loads] == [
        (0, 0, 2), (1, 0, 2), (0, 0, 2),
    ]  # fmt: skip


def test_the_second_turn_tells_what_it_found_in_the_cache() -> None:
    """Nearly all of the first, streamed or not."""
    for first, second in (("chat", "chat_second_turn"), ("stream", "stream_second_turn")):
        cold, warm = usage(first), usage(second)
        assert cold.prompt_tokens and cold.cached_tokens is not None
        assert cold.cached_tokens < cold.prompt_tokens / 5
        assert warm.cached_tokens and warm.cached_tokens > cold.prompt_tokens * 0.8


def test_a_count_is_what_a_turn_takes() -> None:
    """The tokens of a prompt, counted without a turn."""
    counted, turn = answers("count")
    assert ADAPTER.read_count(counted) == json.loads(turn.body)["usage"]["prompt_tokens"]


def test_a_stream_adds_up_to_a_message() -> None:
    """And the fields of the adapter are taken."""
    message = read_reply(events(answers("stream")[0].body))
    assert message is not None and message["content"].strip()
    assert answers("completion")[0].status == answers("two_choices_stream")[0].status == 200


def test_its_refusals_become_our_errors() -> None:
    """With its own sentence."""
    for case, kind, word in (
        ("too_long", PromptTooLong, "token"),
        ("no_messages", InvalidRequest, "messages"),
        ("embeddings", NotSupported, "embeddings"),
    ):
        (reply,) = answers(case)
        error = engine_error(reply.status, reply.body)
        assert isinstance(error, kind) and word in error.message
