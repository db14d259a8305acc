"""`[pool.speculation]` as each engine's own flags, and the refusal of what it cannot do.

Pure, but for the heads of GGUF files. A draft model must have the vocabulary of its model: what
the files of both tell is compared here, before an engine has loaded for minutes.
"""

import json
from collections import Counter
from collections.abc import Hashable, Sequence
from pathlib import Path

from sessile.engines.flags import Flag, Flags
from sessile.engines.gguf import read_vocabulary, serves_as_draft
from sessile.engines.model_facts import ModelFacts
from sessile.errors import SettingsError
from sessile.pool_settings import SpeculationSettings

_NGRAM_TOKENS = 8
_DRAFT_TOKENS = 4
_ADAPTIVE = "--speculative-adaptive"
_ADAPTIVE_STEPS = 3  # one of those between which every version of it chooses
_SGLANG = {"eagle3": "EAGLE3", "standalone": "STANDALONE", "draft": "STANDALONE",
           "mtp": "NEXTN", "ngram": "NGRAM"}  # fmt: skip
_VLLM = {"eagle3": "eagle3", "standalone": "draft_model", "draft": "draft_model", "mtp": "mtp",
         "ngram": "ngram", "suffix": "suffix"}  # fmt: skip
_LLAMACPP = {"eagle3": "draft_eagle3", "standalone": "draft_simple", "draft": "draft_simple",
             "mtp": "draft_mtp", "ngram": "ngram_map_k"}  # fmt: skip


def settle(wanted: SpeculationSettings, model: ModelFacts, draft: ModelFacts | None) -> str:
    """The method that is meant: `auto` by what lies next to the model. `draft` is the facts of
    the draft that was named, or found."""
    if wanted.method != "auto":
        return wanted.method
    if draft is not None:
        return "eagle3" if draft.eagle else "draft"
    return "mtp" if model.predicts_ahead else "ngram"


def spread(
    wanted: SpeculationSettings, places: Sequence[Hashable], method: str, *, adapts: bool = False
) -> tuple[list[SpeculationSettings], str | None]:
    """What each replica of a pool is to do, by its place on the machine, and what is to be told.

    With `auto` every other one speculates, of those that share a place every other one there: so
    the router can measure both, and send each session where it is faster. One that is alone
    speculates only if its engine `adapts` by itself: nothing would tell that it is slower.
    """
    if wanted.method != "auto" or method == "off" or (adapts and len(places) == 1):
        return [wanted] * len(places), None
    off = SpeculationSettings(method="off")
    apart = len(set(places)) == len(places)
    seen: Counter[Hashable] = Counter()
    found = []
    for number, place in enumerate(places):
        found.append(wanted if (number if apart else seen[place]) % 2 else off)
        seen[place] += 1
    some = len(found) - found.count(off)
    if some:
        return found, f"{some} of {len(found)} speculate ({method}); sessions go where it is faster"
    return found, (
        'speculation.method "auto" is off for one replica alone, since nothing would tell whether '
        f'it is slower: start two, or name the method ("{method}")'
    )


def takes_model(method: str) -> bool:
    """Whether the draft of this method is a model of its own, which reads and writes tokens."""
    return method in ("draft", "standalone")


def adapts(method: str, known: Flags) -> bool:
    """Whether SGLang turns this method down by itself, where the batch is large or little is
    accepted."""
    return method in ("eagle3", "mtp") and _ADAPTIVE in known


def check_draft(
    model: ModelFacts, draft: ModelFacts, engine: str, *, maps_tokens: bool = False
) -> None:
    """Raise `SettingsError` where the files show that the engine would not take the draft, or would
    draft in another vocabulary.

    The models of one family may have one tokenizer and embeddings that were padded to different
    sizes. Engines compare the sizes, but for one that `maps_tokens`.
    """
    ours, theirs = model.vocabulary, draft.vocabulary
    if ours is None or theirs is None:
        return
    known = None not in (model.tokenizer, draft.tokenizer)
    if model.tokenizer != draft.tokenizer if known else ours != theirs:
        raise _other_vocabulary(model.source, ours, draft.source, theirs)
    if ours != theirs and not maps_tokens:
        raise SettingsError(
            f"speculation.draft_model: {draft.source} has the tokenizer of {model.source}, but "
            f"{engine} takes no draft whose vocab_size is another ({theirs}, not {ours}): take one "
            f'of that size, or method = "ngram", which needs none'
        )


def check_draft_file(model: Path, draft: Path) -> None:
    """Raise `SettingsError` where llama.cpp would not take the one GGUF file as the draft of the
    other: it tells that in its log only, and serves without the draft."""
    ours = read_vocabulary(model, "model")
    theirs = read_vocabulary(draft, "speculation.draft_model")
    if ours is not None and theirs is not None and not serves_as_draft(ours, theirs):
        raise _other_vocabulary(model, len(ours.tokens), draft, len(theirs.tokens))


def _other_vocabulary(
    model: object, model_tokens: int, draft: object, draft_tokens: int
) -> SettingsError:
    return SettingsError(
        f"speculation.draft_model: {draft} has another vocabulary ({draft_tokens} tokens) than "
        f'{model} ({model_tokens}): take a draft of the same family, or method = "ngram", which '
        "needs none"
    )


def sglang(
    wanted: SpeculationSettings, model: ModelFacts, draft: ModelFacts | None, *, cpu: bool,
    known: Flags,
) -> list[Flag]:  # fmt: skip
    """SGLang's flags; raises `SettingsError` for what it cannot do. `auto` has it adapt."""
    method = settle(wanted, model, draft)
    if method == "off" or (wanted.method == "auto" and cpu):
        return []
    if cpu:
        raise SettingsError(f"speculation.method: SGLang does not speculate on a CPU ({method!r})")
    algorithm = _named("SGLang", method, _SGLANG)
    flags: list[Flag] = [("--speculative-algorithm", algorithm)]
    if method == "ngram":
        if wanted.tokens is not None:  # a tree of drafts, whose size SGLang knows best
            flags.append(("--speculative-num-draft-tokens", str(wanted.tokens)))
        return flags
    adaptive = wanted.method == "auto" and adapts(method, known)
    tokens = wanted.tokens or (_ADAPTIVE_STEPS if adaptive else _DRAFT_TOKENS)
    if adaptive:
        flags.append((_ADAPTIVE, None))
    if draft is not None:
        flags.append(("--speculative-draft-model-path", draft.source))
    return [
        *flags,
        ("--speculative-num-steps", str(tokens)),
        ("--speculative-eagle-topk", "1"),
        ("--speculative-num-draft-tokens", str(tokens + 1)),  # and the token that is certain
    ]


def vllm(wanted: SpeculationSettings, model: ModelFacts, draft: ModelFacts | None) -> list[Flag]:
    """vLLM's flag; raises `SettingsError` for what it cannot do."""
    method = settle(wanted, model, draft)
    if method == "off":
        return []
    config: dict[str, object] = {"method": _named("vLLM", method, _VLLM)}
    if draft is not None:
        config["model"] = draft.source
        if takes_model(method) and None not in (sizes := {model.vocabulary, draft.vocabulary}):
            # Of one tokenizer, as was checked: all of its tokens are mapped to themselves.
            config |= {"use_heterogeneous_vocab": True} if len(sizes) > 1 else {}
    if method == "ngram":
        config |= {"prompt_lookup_min": 2, "prompt_lookup_max": 4}
    if method != "suffix" or wanted.tokens is not None:  # suffix: as long as its tree reaches
        tokens = _NGRAM_TOKENS if method == "ngram" else _DRAFT_TOKENS
        config["num_speculative_tokens"] = wanted.tokens or tokens
    return [("--speculative-config", json.dumps(config, separators=(",", ":")))]


def llamacpp(method: str, draft: str | None, tokens: int | None) -> list[str]:
    """The arguments of the embedded replica. Its n-grams are found far less often if what followed
    must be as long as they would have it by themselves (48 tokens)."""
    if method == "off":
        return []
    if method == "ngram":
        tokens = tokens or _NGRAM_TOKENS
    line = ["--speculation", _named("llama.cpp", method, _LLAMACPP)]
    if draft is not None:
        line += ["--draft", draft]
    return line if tokens is None else [*line, "--draft-tokens", str(tokens)]


def _named(engine: str, method: str, known: dict[str, str]) -> str:
    if method not in known:
        raise SettingsError(
            f"speculation.method: {engine} has no {method!r}; it has {', '.join(known)}"
        )
    return known[method]
