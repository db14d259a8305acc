"""What the head of a GGUF file tells of its vocabulary, and whether a draft's is its model's.

llama.cpp loads a draft of another vocabulary, says so in its log, and serves without it; so it is
found out here, before anything is started.
"""

import mmap
import struct
from pathlib import Path
from typing import Any

import msgspec

from sessile.errors import SettingsError

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)  # the first had shorter lengths; no file of it is around
_FORMATS = ("B", "b", "H", "h", "I", "i", "f", "?", "", "", "Q", "q", "d")
_STRING, _ARRAY = 8, 9
_KIND, _TOKENS = b"tokenizer.ggml.model", b"tokenizer.ggml.tokens"
_MOST_APART = 128  # llama.cpp takes a draft with so many tokens more or fewer: padding
_OWN_TOKENS = 5  # the first of them may have other texts


class Vocabulary(msgspec.Struct, frozen=True):
    """The kind of a tokenizer, and the texts of its tokens."""

    kind: bytes
    tokens: tuple[bytes, ...]


def read_vocabulary(path: Path, setting: str) -> Vocabulary | None:
    """The vocabulary of the file that `setting` names; None if it tells none. Raises
    `SettingsError` for a file that is none of GGUF's, or is cut off in its head."""
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            if data[:4] != _MAGIC:
                raise SettingsError(
                    f"{setting}: {path} is not a GGUF file (it does not begin with GGUF)"
                )
            return _Head(data).vocabulary()
    except (struct.error, IndexError, TypeError, ValueError) as error:  # the last: it is empty
        raise SettingsError(f"{setting}: {path} is no whole GGUF file; fetch it again") from error
    except OSError as error:
        raise SettingsError(f"{setting}: cannot read {path}: {error.strerror}") from error


def serves_as_draft(model: Vocabulary, draft: Vocabulary) -> bool:
    """Whether llama.cpp takes a draft with that vocabulary for the model."""
    apart = abs(len(model.tokens) - len(draft.tokens))
    both = slice(_OWN_TOKENS, min(len(model.tokens), len(draft.tokens)))
    alike = model.tokens[both] == draft.tokens[both]
    return model.kind == draft.kind and apart <= _MOST_APART and alike


class _Head:
    """Reads the keys and values one after the other."""

    def __init__(self, data: mmap.mmap) -> None:
        self._data = data
        self._at = 4

    def vocabulary(self) -> Vocabulary | None:
        """By the two keys that tell it; nothing behind them is read."""
        if self._number("I") not in _VERSIONS:
            return None
        _, keys = self._number("Q"), self._number("Q")
        found: dict[bytes, Any] = {}
        for _ in range(keys):
            key = self._string()
            value = self._value(self._number("I"), wanted=key in (_KIND, _TOKENS))
            if key in (_KIND, _TOKENS):
                found[key] = value
            if len(found) == 2:
                return Vocabulary(found[_KIND], tuple(found[_TOKENS]))
        return None

    def _value(self, kind: int, *, wanted: bool) -> Any:
        """A value of that kind; one that is not wanted is passed over, where that is shorter."""
        if kind == _STRING:
            return self._string()
        if kind != _ARRAY:
            return self._number(_FORMATS[kind])
        kind, count = self._number("I"), self._number("Q")
        if kind in (_STRING, _ARRAY):
            return [self._value(kind, wanted=wanted) for _ in range(count)]
        self._at += count * struct.calcsize(f"<{_FORMATS[kind]}")
        return None

    def _number(self, form: str) -> Any:
        (number,) = struct.unpack_from(f"<{form}", self._data, self._at)
        self._at += struct.calcsize(f"<{form}")
        return number

    def _string(self) -> bytes:
        size = self._number("Q")
        text = self._data[self._at : self._at + size]
        if len(text) != size:
            raise IndexError(size)
        self._at += size
        return text
