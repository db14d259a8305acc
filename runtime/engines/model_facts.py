"""What the files of a model tell about it: its family, its sizes, its chat template, its draft.

A model that is only named (Hugging Face) tells nothing before the engine has it; all facts are
None then, and what depends on them is left to the engine.
"""

import json
from hashlib import blake2b
from pathlib import Path
from typing import Any

import msgspec

from sessile.errors import SettingsError

_DRAFT_NAMES = ("draft", "eagle3", "eagle")
_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "float8_e4m3fn": 1}


class ModelFacts(msgspec.Struct, frozen=True, kw_only=True):
    """A model as its own files describe it. `name` is what it is served under."""

    source: str
    name: str
    local: bool = False
    family: str | None = None
    template: str = ""
    vocabulary: int | None = None
    tokenizer: str | None = None
    """A digest of its tokens, which two models of one vocabulary share."""
    weight_bytes: int | None = None
    kv_token_bytes: int | None = None
    """KV memory of one token, over all layers and heads."""
    predicts_ahead: bool = False
    """Whether it carries layers that predict more than one token (MTP)."""
    eagle: bool = False
    """Whether it is an EAGLE-3 head, of no use alone."""
    draft: str | None = None
    """The draft model or head that lies next to it."""


def read_model(source: str, setting: str = "model") -> ModelFacts:
    """The facts of the model folder, or the bare name, `source`, as `setting` names it. Raises
    `SettingsError`."""
    folder = Path(source).expanduser()
    if not folder.is_dir():
        if source.startswith(("/", "./", "../", "~")):
            raise SettingsError(f"{setting}: there is no folder {source}")
        return ModelFacts(source=source, name=source)
    folder = folder.resolve()
    config = _json(folder / "config.json")
    if config is None:
        raise SettingsError(f"{setting}: {folder} holds no config.json, so it is no model's folder")
    text = config.get("text_config") if isinstance(config.get("text_config"), dict) else config
    assert isinstance(text, dict)
    near = _draft(folder)
    return ModelFacts(
        source=str(folder),
        name=folder.name,
        local=True,
        family=config.get("model_type"),
        template=_template(folder),
        vocabulary=text.get("vocab_size"),
        tokenizer=_tokens(folder),
        weight_bytes=sum(f.stat().st_size for f in folder.glob("*.safetensors")) or None,
        kv_token_bytes=kv_token_bytes(text),
        predicts_ahead=bool(text.get("num_nextn_predict_layers")),
        eagle="draft_vocab_size" in config or "eagle" in str(config.get("architectures")).lower(),
        draft=str(near) if near else None,
    )


def kv_token_bytes(config: dict[str, Any]) -> int | None:
    """KV memory of one token by a model's configuration; for layers that keep less (windows,
    state spaces) this is an upper bound."""
    layers, width = config.get("num_hidden_layers"), config.get("hidden_size")
    heads = config.get("num_attention_heads")
    if not (isinstance(layers, int) and isinstance(width, int) and isinstance(heads, int)):
        return None
    each = _BYTES.get(str(config.get("torch_dtype") or config.get("dtype")), 2)
    if isinstance(latent := config.get("kv_lora_rank"), int):  # MLA: one latent for all heads
        return layers * (latent + int(config.get("qk_rope_head_dim") or 0)) * each
    kv_heads = config.get("num_key_value_heads") or heads
    size = config.get("head_dim") or width // heads
    return layers * 2 * int(kv_heads) * int(size) * each


def _draft(folder: Path) -> Path | None:
    """`MODEL/draft`, `MODEL-draft` and the like."""
    for name in _DRAFT_NAMES:
        for near in (folder / name, folder.with_name(f"{folder.name}-{name}")):
            if (near / "config.json").is_file():
                return near
    return None


def draft_file(model: Path) -> Path | None:
    """`MODEL-draft.gguf` next to MODEL.gguf."""
    near = model.with_name(f"{model.stem}-draft.gguf")
    return near if near.is_file() else None


def _template(folder: Path) -> str:
    try:
        return (folder / "chat_template.jinja").read_text()
    except OSError:
        told = (_json(folder / "tokenizer_config.json") or {}).get("chat_template")
        return told if isinstance(told, str) else json.dumps(told) if told else ""


def _tokens(folder: Path) -> str | None:
    told = (_json(folder / "tokenizer.json") or {}).get("model")
    vocabulary = told.get("vocab") if isinstance(told, dict) else None
    if not vocabulary:
        return None
    return blake2b(msgspec.json.encode(vocabulary, order="sorted"), digest_size=8).hexdigest()


def _json(path: Path) -> dict[str, Any] | None:
    try:
        told = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise SettingsError(f"model: cannot read {path}: {error}") from error
    return told if isinstance(told, dict) else None
