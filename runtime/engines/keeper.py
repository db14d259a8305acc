"""Runs an engine and ends all that it starts: `python -m sessile.engines.keeper STOP_S COMMAND...`.

An engine is many processes. Whatever ends it (its own end, SIGTERM, SIGKILL of the process that
asked for it, which is seen by the end of standard input), those that it leaves behind end too. On
Linux orphans come to the keeper, so none is missed; elsewhere its process group is what is ended.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from queue import Empty

from sessile.engines.guard import end_asked, tie

_PR_SET_CHILD_SUBREAPER = 36
_LOOK_S = 0.1


def keep(stop_s: float, command: list[str]) -> int:
    """Run `command` until it ends or is to end; then nothing of it is left. Its exit status."""
    _adopt_orphans()
    asked = end_asked()
    mine = os.getpid()
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, preexec_fn=lambda: tie(mine))
    asked_at: float | None = None
    while child.poll() is None:
        if asked_at is not None and time.monotonic() - asked_at > stop_s:
            child.kill()
        with contextlib.suppress(Empty):
            asked.get(timeout=_LOOK_S)
            if asked_at is None:
                child.terminate()
                asked_at = time.monotonic()
    _end_the_rest()
    return child.returncode


def descendants() -> set[int]:
    """The processes below this one (Linux)."""
    parents: dict[int, int] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            state, parent = stat.read_text(errors="replace").rpartition(")")[2].split()[:2]
            if state != "Z":
                parents[int(stat.parent.name)] = int(parent)
    below = {os.getpid()}
    while more := {pid for pid, parent in parents.items() if parent in below} - below:
        below |= more
    return below - {os.getpid()}


def _end_the_rest() -> None:
    """SIGKILL what the engine left behind; its own parent, which would tell it, is gone."""
    while left := descendants():
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(_LOOK_S / 10)


def _adopt_orphans() -> None:
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1)


if __name__ == "__main__":
    code = keep(float(sys.argv[1]), sys.argv[2:])
    if code < 0:  # ended by a signal: end likewise, so that the parent is told which
        signal.signal(-code, signal.SIG_DFL) if -code != signal.SIGKILL else None
        os.kill(os.getpid(), -code)
    sys.exit(code)
