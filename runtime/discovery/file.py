"""Replicas listed in a file, TOML or JSON, that is read again whenever it has changed.

    [[replica]]
    url = "http://gpu1:30000"
    id = "gpu1"         # else made of the engine and the address
    engine = "sglang"   # else the pool's
    model = "qwen3-8b"  # else the pool's: what it is expected to serve before it has come up
    leaving = true      # it finishes what runs there, and is given nothing new

It is polled, which also sees what mounts and network file systems tell no watcher. Write it whole
and rename it into place; one that cannot be read, or lists nothing, changes nothing.
"""

import asyncio
import os
import tomllib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec

from sessile.discovery.named import replica
from sessile.errors import DiscoveryFailed, InvalidRequest
from sessile.router.discovery import Listed

_POLL_S = 0.5


class Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One replica of the file."""

    url: str
    id: str | None = None
    engine: str | None = None
    model: str | None = None
    leaving: bool = False


class Entries(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The whole file."""

    replica: list[Entry]


class FileSource:
    """The replicas of one file. `engine` and `model` are those of the pool."""

    def __init__(self, name: str, path: Path, engine: str, model: str | None) -> None:
        self.name = name
        self._path = path
        self._engine = engine
        self._model = model
        self._seen: object = None

    async def lists(self) -> AsyncIterator[tuple[Listed, ...]]:
        """As `Source` says."""
        self._seen = None
        while True:
            seen = await asyncio.to_thread(self._stamp)
            if seen != self._seen:
                yield await asyncio.to_thread(self._read)
                self._seen = seen
            await asyncio.sleep(_POLL_S)

    def _stamp(self) -> object:
        """What changes when the file does, a mount that swaps links included."""
        try:
            about = os.stat(self._path)
        except OSError as error:
            raise DiscoveryFailed(f"cannot read {self._path}: {error.strerror}") from error
        return about.st_mtime_ns, about.st_size, about.st_ino

    def _read(self) -> tuple[Listed, ...]:
        try:
            text = self._path.read_text()
        except OSError as error:
            raise DiscoveryFailed(f"cannot read {self._path}: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise DiscoveryFailed(f"{self._path} is not text") from error
        try:
            return read_list(text, self._path.suffix == ".json", self._engine, self._model)
        except ValueError as error:
            raise DiscoveryFailed(f"{self._path} {error}") from error


def read_list(text: str, is_json: bool, engine: str, model: str | None) -> tuple[Listed, ...]:
    """The replicas that a file's text lists. Raises `ValueError` saying what is wrong with it."""
    try:
        tree: Any = msgspec.json.decode(text) if is_json else tomllib.loads(text)
    except (msgspec.DecodeError, tomllib.TOMLDecodeError) as error:
        raise ValueError(f"is not valid {'JSON' if is_json else 'TOML'}: {error}") from error
    try:
        entries = msgspec.convert(tree, Entries).replica
    except msgspec.ValidationError as error:
        raise ValueError(f"does not list replicas: {error}") from error
    if not entries:
        raise ValueError("lists no replica: mark them as leaving to take all out of service")
    found = []
    for number, entry in enumerate(entries):
        try:
            spec = replica(entry.engine or engine, entry.url, entry.model or model, entry.id)
        except InvalidRequest as error:
            raise ValueError(f"has a mistake in replica {number}: {error.message}") from error
        found.append(Listed(spec, entry.leaving))
    return tuple(found)
