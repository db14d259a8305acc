"""`[pool.speculation]` in each engine's own flags."""

import json

import pytest

from sessile.engines import speculation
from sessile.engines.flags import Flags
from sessile.engines.model_facts import ModelFacts
from sessile.errors import SettingsError
from sessile.pool_settings import SpeculationSettings

MODEL = ModelFacts(source="/m", name="m", vocabulary=100, tokenizer="a")
DRAFT = ModelFacts(source="/d", name="d", vocabulary=100, tokenizer="a")
KNOWN = Flags({"--speculative-adaptive": "--speculative-adaptive"}, {})
HEAD = ModelFacts(source="/e", name="e", eagle=True)


def wanted(method: str, **settings: object) -> SpeculationSettings:
    """These settings, valid."""
    return SpeculationSettings.model_validate({"method": method, **settings})


@pytest.mark.parametrize(
    ("method", "draft", "tokens", "flags"),
    [
        ("off", None, None, ""),
        ("ngram", None, None, "--speculative-algorithm NGRAM"),
        ("ngram", None, 6, "--speculative-algorithm NGRAM --speculative-num-draft-tokens 6"),
        ("draft", DRAFT, None,
         "--speculative-algorithm STANDALONE --speculative-draft-model-path /d "
         "--speculative-num-steps 4 --speculative-eagle-topk 1 --speculative-num-draft-tokens 5"),
        ("standalone", DRAFT, 2,
         "--speculative-algorithm STANDALONE --speculative-draft-model-path /d "
         "--speculative-num-steps 2 --speculative-eagle-topk 1 --speculative-num-draft-tokens 3"),
        ("eagle3", HEAD, 3,
         "--speculative-algorithm EAGLE3 --speculative-draft-model-path /e "
         "--speculative-num-steps 3 --speculative-eagle-topk 1 --speculative-num-draft-tokens 4"),
        ("mtp", None, 2,
         "--speculative-algorithm NEXTN "
         "--speculative-num-steps 2 --speculative-eagle-topk 1 --speculative-num-draft-tokens 3"),
    ],
)  # fmt: skip
def test_sglang_has_an_algorithm_for_each(method, draft, tokens, flags):
    """With the draft's tokens, and the certain one, to verify."""
    given = wanted(method, tokens=tokens, draft_model=draft and draft.source)
    found = speculation.sglang(given, MODEL, draft, cpu=False, known=KNOWN)
    assert " ".join(word for flag in found for word in flag if word) == flags


@pytest.mark.parametrize(
    ("method", "draft", "config"),
    [
        ("ngram", None, {"method": "ngram", "prompt_lookup_min": 2, "prompt_lookup_max": 4,
                         "num_speculative_tokens": 8}),
        ("suffix", None, {"method": "suffix"}),
        ("mtp", None, {"method": "mtp", "num_speculative_tokens": 4}),
        ("standalone", DRAFT, {"method": "draft_model", "model": "/d",
                               "num_speculative_tokens": 4}),
        ("draft", DRAFT, {"method": "draft_model", "model": "/d", "num_speculative_tokens": 4}),
        ("eagle3", HEAD, {"method": "eagle3", "model": "/e", "num_speculative_tokens": 4}),
    ],
)  # fmt: skip
def test_vllm_has_a_method_for_each(method, draft, config):
    """As one JSON object."""
    given = wanted(method, draft_model=draft and draft.source)
    ((flag, value),) = speculation.vllm(given, MODEL, draft)
    assert flag == "--speculative-config" and json.loads(value or "") == config
    assert speculation.vllm(wanted("off"), MODEL, None) == []


def test_llama_cpp_has_types_for_most():
    """Under the names of its own enumeration."""
    assert speculation.llamacpp("off", None, None) == []
    assert speculation.llamacpp("ngram", None, None)[-2:] == ["--draft-tokens", "8"]
    assert speculation.llamacpp("ngram", None, 16) == [
        "--speculation", "ngram_map_k", "--draft-tokens", "16",
    ]  # fmt: skip
    for method in ("draft", "standalone"):
        assert speculation.llamacpp(method, "d.gguf", None) == [
            "--speculation", "draft_simple", "--draft", "d.gguf",
        ]  # fmt: skip
    assert speculation.llamacpp("eagle3", "e.gguf", 3) == [
        "--speculation", "draft_eagle3", "--draft", "e.gguf", "--draft-tokens", "3",
    ]  # fmt: skip
    assert speculation.llamacpp("mtp", None, None) == ["--speculation", "draft_mtp"]


def test_a_method_that_an_engine_lacks_is_refused_by_name():
    """With those that it has."""
    with pytest.raises(SettingsError, match="SGLang has no 'suffix'; it has eagle3, standalone"):
        speculation.sglang(wanted("suffix"), MODEL, None, cpu=False, known=KNOWN)
    with pytest.raises(SettingsError, match=r"llama\.cpp has no 'suffix'"):
        speculation.llamacpp("suffix", None, None)
    with pytest.raises(SettingsError, match="SGLang does not speculate on a CPU"):
        speculation.sglang(wanted("ngram"), MODEL, None, cpu=True, known=KNOWN)


def test_auto_takes_what_is_there():
    """A head, a draft, layers that predict ahead, else n-grams; nothing for SGLang on a CPU."""
    auto = wanted("auto")
    assert speculation.settle(auto, MODEL, HEAD) == "eagle3"
    assert speculation.settle(auto, MODEL, DRAFT) == "draft"
    ahead = ModelFacts(source="/m", name="m", predicts_ahead=True)
    assert speculation.settle(auto, ahead, None) == "mtp"
    assert speculation.settle(auto, MODEL, None) == "ngram"
    assert speculation.sglang(auto, MODEL, None, cpu=True, known=KNOWN) == []


def test_an_automatic_head_adapts_where_sglang_can():
    """By as many steps as it knows to choose from; an older one drafts as ever."""
    auto = wanted("auto", draft_model="/e")
    words = speculation.sglang(auto, MODEL, HEAD, cpu=False, known=KNOWN)
    assert ("--speculative-adaptive", None) in words and ("--speculative-num-steps", "3") in words
    for given, known in ((auto, Flags({}, {})), (wanted("eagle3", draft_model="/e"), KNOWN)):
        words = speculation.sglang(given, MODEL, HEAD, cpu=False, known=known)
        assert ("--speculative-adaptive", None) not in words


@pytest.mark.parametrize(
    ("places", "speculating"),
    [
        ([(0,), (1,)], [False, True]),
        ([(0,), (1,), (2,), (3,)], [False, True, False, True]),
        ([(0,), (1,), (0,), (1,)], [False, False, True, True]),
        ([(0,), (0,), (0,)], [False, True, False]),
    ],
)
def test_auto_has_every_other_replica_speculate(places, speculating):
    """On a GPU that several share, every other one there: one of each is to be had everywhere."""
    tasks, note = speculation.spread(wanted("auto"), places, "ngram")
    assert [task.method != "off" for task in tasks] == speculating
    assert note is not None and note.startswith(f"{sum(speculating)} of {len(places)} speculate")
    tasks, note = speculation.spread(wanted("ngram"), places, "ngram")
    assert {task.method for task in tasks} == {"ngram"} and note is None


def test_one_replica_alone_speculates_only_if_it_adapts_by_itself():
    """Nothing would tell that it is slower; the remedy is told."""
    (task,), note = speculation.spread(wanted("auto"), [(0,)], "ngram")
    assert task.method == "off" and note is not None and "start two, or name the method" in note
    (task,), note = speculation.spread(wanted("auto"), [(0,)], "eagle3", adapts=True)
    assert task.method == "auto" and note is None


def test_a_draft_of_another_vocabulary_is_refused():
    """By its tokens, or by its size where no file tells these; where none tells that either, the
    engine has the word."""
    speculation.check_draft(MODEL, DRAFT, "vLLM 0.32.0")
    speculation.check_draft(MODEL, ModelFacts(source="org/d", name="d"), "vLLM 0.32.0")
    for other in (
        ModelFacts(source="/o", name="o", vocabulary=101, tokenizer="b"),
        ModelFacts(source="/o", name="o", vocabulary=100, tokenizer="b"),
        ModelFacts(source="/o", name="o", vocabulary=101),
    ):
        with pytest.raises(SettingsError, match="/o has another vocabulary"):
            speculation.check_draft(MODEL, other, "vLLM 0.32.0", maps_tokens=True)


def test_a_padded_draft_of_the_same_tokenizer_is_for_an_engine_that_maps_tokens():
    """It is told to; one of the same size needs none of that, and no other engine takes it."""
    padded = ModelFacts(source="/p", name="p", vocabulary=128, tokenizer="a")
    told = (
        r"/p has the tokenizer of /m, but SGLang 0\.5\.23 takes no draft whose vocab_size is "
        r"another \(128, not 100\): take one of that size, or method = \"ngram\""
    )
    with pytest.raises(SettingsError, match=told):
        speculation.check_draft(MODEL, padded, "SGLang 0.5.23")
    speculation.check_draft(MODEL, padded, "vLLM 0.32.0", maps_tokens=True)
    given = wanted("draft", draft_model="/p")
    unread = ModelFacts(source="org/m", name="m")
    for model, draft, maps in (
        (MODEL, padded, True), (MODEL, DRAFT, False), (unread, padded, False),
    ):  # fmt: skip
        ((_, value),) = speculation.vllm(given, model, draft)
        assert ("use_heterogeneous_vocab" in json.loads(value or "")) is maps


def test_settings_that_contradict_each_other_are_refused():
    """A method that needs a draft has one, and no other has."""
    with pytest.raises(ValueError, match="needs draft_model"):
        wanted("eagle3")
    with pytest.raises(ValueError, match="uses no draft_model"):
        wanted("ngram", draft_model="/d")
