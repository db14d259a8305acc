"""The vocabulary in the head of a GGUF file, and the draft that llama.cpp would not take."""

import struct
from pathlib import Path

import pytest

from sessile.engines.gguf import read_vocabulary
from sessile.errors import SettingsError
from sessile.pool_settings import PoolSettings
from sessile.settings import Settings
from sessile.up_plan import plan_up

WORDS = [f"w{n}" for n in range(300)]


def text(said: str) -> bytes:
    """A string as GGUF has it."""
    return struct.pack("<Q", len(said)) + said.encode()


def texts(said: list[str]) -> bytes:
    """An array of strings, with its kinds."""
    return struct.pack("<IIQ", 9, 8, len(said)) + b"".join(map(text, said))


def gguf(path: Path, words: list[str] | None, kind: str = "gpt2", version: int = 3) -> Path:
    """A file with a number, an array of numbers and of strings before its vocabulary."""
    keys = [
        text("llama.block_count") + struct.pack("<II", 4, 30),
        text("tokenizer.ggml.token_type") + struct.pack("<IIQ3i", 9, 5, 3, 1, 1, 1),
        text("tokenizer.ggml.merges") + texts(["a b", "b c"]),
    ]
    if words is not None:
        keys += [
            text("tokenizer.ggml.model") + struct.pack("<I", 8) + text(kind),
            text("tokenizer.ggml.tokens") + texts(words),
        ]
    head = b"GGUF" + struct.pack("<IQQ", version, 0, len(keys))
    path.write_bytes(head + b"".join(keys) + b"weights")
    return path


def plan(model: Path, draft: Path, method: str = "draft") -> list[str]:
    """The command of the one replica that `sessile up` would start with that draft."""
    speculation = {"method": method, "draft_model": str(draft)}
    pool = PoolSettings.model_validate(
        {"model": str(model), "replicas": 1, "speculation": speculation}
    )
    (launch,) = plan_up(Settings(pool=(pool,)), model.parent, None, lambda _: None)
    return list(launch.command)


@pytest.mark.parametrize(
    "words",
    [
        pytest.param(WORDS, id="the same"),
        pytest.param([*WORDS, *(f"pad{n}" for n in range(128))], id="padded"),
        pytest.param(["<s>", *WORDS[1:]], id="another word for its first"),
        pytest.param(None, id="a file that tells none"),
    ],
)
def test_a_draft_of_the_same_family_is_started(tmp_path: Path, words: list[str] | None):
    """What llama.cpp takes is not refused."""
    draft = gguf(tmp_path / "d.gguf", words)
    assert str(draft) in plan(gguf(tmp_path / "m.gguf", WORDS), draft)


@pytest.mark.parametrize(
    ("words", "kind"),
    [
        pytest.param([*WORDS[:-1], "other"], "gpt2", id="another token"),
        pytest.param(WORDS[:150], "gpt2", id="far fewer"),
        pytest.param(WORDS, "llama", id="another kind"),
    ],
)
def test_a_draft_of_another_vocabulary_is_refused(tmp_path: Path, words: list[str], kind: str):
    """Before anything is started, with both named and the remedy: llama.cpp would go on without
    it. A head that goes by the model's own layers is none of this."""
    model, draft = gguf(tmp_path / "m.gguf", WORDS), gguf(tmp_path / "d.gguf", words, kind)
    with pytest.raises(SettingsError) as refused:
        plan(model, draft)
    told = refused.value.message
    assert f"{draft} has another vocabulary ({len(words)} tokens) than {model} (300)" in told
    assert 'method = "ngram"' in told
    assert str(draft) in plan(model, draft, "eagle3")


def test_a_file_that_cannot_be_read_is_told(tmp_path: Path):
    """By the setting that names it; one of a form that is not known is left to the engine."""
    model = gguf(tmp_path / "m.gguf", WORDS)
    whole = model.read_bytes()
    draft = tmp_path / "d.gguf"
    for content, why in (
        (b"hello, this is no model", "is not a GGUF file"),
        (b"", "is no whole GGUF file"),
        (whole[:900], "is no whole GGUF file"),
        (whole[:30], "is no whole GGUF file"),
    ):
        draft.write_bytes(content)
        with pytest.raises(SettingsError, match=rf"speculation\.draft_model: .*d\.gguf {why}"):
            plan(model, draft)
    assert read_vocabulary(gguf(draft, WORDS, version=1), "model") is None
