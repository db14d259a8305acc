"""The private folder of a running `sessile up`: it goes with it, or when the next one starts."""

import os
import stat
import tempfile
import time

import pytest
from filelock import FileLock

from sessile.engines.scratch import private_folder


@pytest.fixture(autouse=True)
def _place(tmp_path, monkeypatch):
    """Another place for temporary files, so that no other process's are seen."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


def test_it_is_private_and_goes_with_its_block():
    """Nobody else can enter it, and what was put there is removed."""
    with private_folder() as folder:
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        (folder / "saved").write_text("slot")
    assert not folder.exists()


def test_what_a_killed_process_left_is_removed_by_the_next(tmp_path):
    """An old folder whose lock nobody holds; one in use, one just made and a link are left."""
    long_ago = time.time() - 3600
    target = tmp_path / "elsewhere"
    names = ("killed", "used", "young")
    killed, used, young = (tmp_path / f"sessile-up-{name}" for name in names)
    link = tmp_path / "sessile-up-link"
    for folder in (killed, used, young, target):
        folder.mkdir()
    link.symlink_to(target)
    (killed / "saved").write_text("slot")
    with FileLock(used / "lock"):
        for folder in (killed, used):
            os.utime(folder, (long_ago, long_ago))
        os.utime(link, (long_ago, long_ago), follow_symlinks=False)
        with private_folder():
            assert not killed.exists()
            assert used.exists() and young.exists() and link.exists() and target.exists()
