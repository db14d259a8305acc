"""What a model's folder tells, and which parsers read what it writes."""

import json
from pathlib import Path

import pytest

from sessile.engines.model_facts import ModelFacts, draft_file, kv_token_bytes, read_model
from sessile.engines.parsers import reasoning_parser, tool_parser
from sessile.errors import SettingsError

LLAMA_8B = {
    "num_hidden_layers": 32, "hidden_size": 4096, "num_attention_heads": 32,
    "num_key_value_heads": 8, "torch_dtype": "bfloat16", "vocab_size": 128256,
}  # fmt: skip


def folder(path: Path, config: object, **files: object) -> Path:
    """A model's folder with this configuration."""
    path.mkdir(parents=True)
    (path / "config.json").write_text(json.dumps(config))
    for name, content in files.items():
        (path / f"{name}.json").write_text(json.dumps(content))
    return path


def test_a_folder_tells_the_sizes_of_its_model(tmp_path: Path):
    """Weights by their files, KV memory by the configuration, the draft that lies in it."""
    model = folder(
        tmp_path / "llama", {**LLAMA_8B, "model_type": "llama"},
        tokenizer={"model": {"vocab": {"a": 0}}}, tokenizer_config={"chat_template": "<think>"},
    )  # fmt: skip
    (model / "a.safetensors").write_bytes(b"x" * 10)
    (model / "b.safetensors").write_bytes(b"x" * 20)
    head = folder(tmp_path / "llama-eagle3", {"draft_vocab_size": 32000})
    facts = read_model(str(model))
    assert (facts.name, facts.local, facts.family) == ("llama", True, "llama")
    assert facts.weight_bytes == 30 and facts.kv_token_bytes == 131072
    assert facts.vocabulary == 128256 and facts.template == "<think>"
    assert facts.draft == str(head) and read_model(str(head)).eagle
    other = folder(tmp_path / "other", {}, tokenizer={"model": {"vocab": {"b": 0}}})
    assert facts.tokenizer != read_model(str(other)).tokenizer is not None


def test_a_name_tells_nothing_yet(tmp_path: Path):
    """The engine fetches it; a path that is not there is an error, and so is any other folder."""
    facts = read_model("org/model")
    assert facts.name == "org/model" and not facts.local and facts.weight_bytes is None
    with pytest.raises(SettingsError, match="no folder /nowhere"):
        read_model("/nowhere")
    with pytest.raises(SettingsError, match=r"^speculation.draft_model: there is no folder /no"):
        read_model("/nowhere", "speculation.draft_model")
    with pytest.raises(SettingsError, match=r"no config\.json"):
        read_model(str(tmp_path))


def test_kv_memory_is_counted_by_the_heads_that_are_kept():
    """Grouped heads, a latent for all of them, or nothing where the configuration is another."""
    assert kv_token_bytes({**LLAMA_8B, "num_key_value_heads": None}) == 131072 * 4
    latent = {**LLAMA_8B, "kv_lora_rank": 512, "qk_rope_head_dim": 64}
    assert kv_token_bytes(latent) == 32 * 576 * 2
    assert kv_token_bytes({"d_model": 512}) is None


def test_the_draft_of_a_file_lies_next_to_it(tmp_path: Path):
    """Under its name with -draft."""
    model = tmp_path / "m.gguf"
    assert draft_file(model) is None
    (tmp_path / "m-draft.gguf").write_bytes(b"GGUF")
    assert draft_file(model) == tmp_path / "m-draft.gguf"


@pytest.mark.parametrize(
    ("template", "sglang", "vllm"),
    [
        ("<tool_call>{}</tool_call>", ("qwen25", None), ("hermes", None)),
        ("<tool_call> enable_thinking <think>", ("qwen25", "qwen3"), ("hermes", "qwen3")),
        ("<tool_call><function=", ("qwen3_coder", None), ("qwen3_coder", None)),
        ("<tool_call><arg_key> <think>", ("glm45", "glm45"), ("glm45", "glm45")),
        ("[TOOL_CALLS]", ("mistral", None), ("mistral", None)),
        ("Environment: ipython <|eot_id|>", ("llama3", None), ("llama3_json", None)),
        ("<|im_start|>", (None, None), (None, None)),
    ],
)
def test_a_template_shows_which_parsers_read_its_model(template, sglang, vllm):
    """By its marks, the narrower first; none where nothing is recognised."""
    model = ModelFacts(source="m", name="m", template=template)
    assert (tool_parser("sglang", model), reasoning_parser("sglang", model)) == sglang
    assert (tool_parser("vllm", model), reasoning_parser("vllm", model)) == vllm
