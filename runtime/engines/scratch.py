"""A private folder for what `sessile up` keeps on disk while it runs: sockets, saved slots.

It goes with its block. What a SIGKILL leaves, the next `sessile up` removes: a folder is in use
for exactly as long as its lock is held, and the kernel lets go of a dead process's locks.
"""

import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

_PREFIX = "sessile-up-"
_YOUNG_S = 60.0  # a folder so new may be without its lock yet


@contextmanager
def private_folder() -> Iterator[Path]:
    """An empty folder that only this user can enter (0700), for as long as the block lasts."""
    _sweep(Path(tempfile.gettempdir()))
    folder = Path(tempfile.mkdtemp(prefix=_PREFIX))
    try:
        with FileLock(folder / "lock"):
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _sweep(parent: Path) -> None:
    """Remove this user's folders whose process is gone; others' are left alone."""
    for folder in parent.glob(f"{_PREFIX}*"):
        with suppress(OSError, Timeout):  # in use, or removed by another `up` just now
            found = folder.lstat()
            mine = not hasattr(os, "getuid") or found.st_uid == os.getuid()
            young = time.time() - found.st_mtime < _YOUNG_S
            if stat.S_ISDIR(found.st_mode) and mine and not young:
                with FileLock(folder / "lock", timeout=0):
                    shutil.rmtree(folder, ignore_errors=True)
