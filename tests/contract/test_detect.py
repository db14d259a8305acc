"""Which engine answers at a URL without a name, by what each says of itself: real engines as they
were recorded, the others by their documentation."""

import json
from typing import Any

import pytest

from recorded_engines import recorded
from sessile.engines.detect import LMSTUDIO, MODELS, OLLAMA, TGI, detect, named
from sessile.engines.kinds import engine
from sessile.errors import ReplicaRefused, ReplicaUnreachable
from sessile.router.engine import Reply

NOTHING = Reply(404, b'{"detail":"Not Found"}')
CASES = {
    "sglang": ["identity"],
    "vllm": ["identity"],
    "llamacpp": ["identity"],
    "tensorrt-llm": ["identity"],
    "triton": ["identity"],
    "tgi": ["identity", "models"],
    "ollama": ["models", "health"],
    "lmstudio": ["identity"],
}


def pages(kind: str, *cases: str) -> dict[str, Reply]:
    """What an engine answers to what an unknown one is asked; 404 where its cases say nothing."""
    told = dict.fromkeys((MODELS, OLLAMA, TGI, LMSTUDIO), NOTHING)
    for case in cases:
        for e in recorded(kind, case)["exchanges"]:
            if e["path"] in told:
                told[e["path"]] = said(e["json"], e["status"])
    return told


def said(body: Any, status: int = 200) -> Reply:
    """A page."""
    return Reply(status, json.dumps(body).encode())


@pytest.mark.parametrize("kind", CASES)
def test_an_engine_is_known_by_what_it_says_of_itself(kind: str) -> None:
    """By the owner that its models name, or a page that no other engine has."""
    assert detect(pages(kind, *CASES[kind])) == kind


def test_what_says_nothing_of_itself_but_lists_models_is_taken_as_openai() -> None:
    """Whoever owns them; pages that are not JSON say nothing."""
    told = pages("openai") | {
        MODELS: said({"data": [{"id": "m", "owned_by": "somebody"}]}),
        TGI: Reply(200, b"<html>hello</html>"),
        OLLAMA: Reply(200, b"\xff\xfe"),
    }
    assert detect(told) == "openai"


def test_an_engine_without_a_model_is_known_too() -> None:
    """So that its own adapter can say what to do: an Ollama lists null, an LM Studio nothing."""
    assert detect(pages("ollama", "models_empty", "health")) == "ollama"
    assert detect(pages("lmstudio", "identity_empty")) == "lmstudio"


def test_an_older_lm_studio_is_known_by_its_answer_to_paths_that_it_lacks() -> None:
    """200, and an error in the body."""
    assert detect(pages("lmstudio", "identity_old", "unknown_path")) == "lmstudio"


def test_a_server_that_copies_ollamas_pages_keeps_its_own_name() -> None:
    """The owner of its models comes first."""
    told = (
        pages("llamacpp", "identity")
        | pages("ollama", "health")
        | {MODELS: pages("llamacpp", "identity")[MODELS]}
    )
    assert detect(told) == "llamacpp"


@pytest.mark.parametrize(
    ("status", "error", "why"),
    [
        (503, ReplicaUnreachable, "does not serve yet"),
        (401, ReplicaRefused, "asks for a key"),
        (404, ReplicaRefused, "no engine that is known answers there: its /v1/models answered 404"),
        (200, ReplicaRefused, "lists no model"),
    ],
)
def test_a_url_where_no_engine_answers_says_why(
    status: int, error: type[Exception], why: str
) -> None:
    """It loads, wants a key, is something else altogether, or answers and serves nothing."""
    body = b'{"object": "list", "data": []}' if status == 200 else b"no"
    with pytest.raises(error, match=why):
        detect(pages("openai") | {MODELS: Reply(status, body)})


def test_a_name_before_the_url_is_believed() -> None:
    """With none, the engine is to be found out; text that is neither has no URL."""
    assert named("http://gpu1:30000") == ("auto", "http://gpu1:30000")
    assert named("https://gpu1/v1?a=b") == ("auto", "https://gpu1/v1?a=b")
    assert named("sglang=http://gpu1:30000") == ("sglang", "http://gpu1:30000")
    assert named("gpu1:30000") == ("gpu1:30000", "")


def test_an_engine_that_is_named_is_not_asked_what_it_is() -> None:
    """Only the stand-in asks."""
    assert engine("sglang").detect_calls() == ()
    assert [c.path for c in engine("auto").detect_calls()] == [MODELS, OLLAMA, TGI, LMSTUDIO]
