"""`[pool.speculation]` as each engine's own flags, and the refusal of what it cannot do.

Pure. A draft model must have the vocabulary of its model: what the files of both tell is compared
here, before an engine has loaded for minutes.
"""

import json

from sessile.engines.flags import Flag
from sessile.engines.model_facts import ModelFacts
from sessile.errors import SettingsError
from sessile.pool_settings import SpeculationSettings

_NGRAM_TOKENS = 8
_DRAFT_TOKENS = 4
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


def check_draft(model: ModelFacts, draft: ModelFacts) -> None:
    """Raise `SettingsError` where the files show that the draft has another vocabulary."""
    if model.vocabulary is None or draft.vocabulary is None:
        return
    same = model.tokenizer == draft.tokenizer or None in (model.tokenizer, draft.tokenizer)
    if model.vocabulary != draft.vocabulary or not same:
        raise SettingsError(
            f"speculation.draft_model: {draft.source} has another vocabulary "
            f"({draft.vocabulary} tokens) than {model.source} ({model.vocabulary}): "
            "take a draft of the same family, or method = \"ngram\", which needs none"
        )  # fmt: skip


def sglang(
    wanted: SpeculationSettings, model: ModelFacts, draft: ModelFacts | None, *, cpu: bool
) -> list[Flag]:
    """SGLang's flags; raises `SettingsError` for what it cannot do."""
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
    tokens = wanted.tokens or _DRAFT_TOKENS
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
    if method == "ngram":
        config |= {"prompt_lookup_min": 2, "prompt_lookup_max": 4}
    if method != "suffix" or wanted.tokens is not None:  # suffix: as long as its tree reaches
        tokens = _NGRAM_TOKENS if method == "ngram" else _DRAFT_TOKENS
        config["num_speculative_tokens"] = wanted.tokens or tokens
    return [("--speculative-config", json.dumps(config, separators=(",", ":")))]


def llamacpp(method: str, draft: str | None, tokens: int | None) -> list[str]:
    """The arguments of the embedded replica."""
    if method == "off":
        return []
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
