"""Ties a child to its parent: whatever kills the parent, SIGKILL too, ends the child.

`python -m sessile.engines.guard PARENT_PID COMMAND...` asks the kernel (Linux) to send SIGKILL
when the parent dies, makes sure that it has not died already, and becomes the command. Elsewhere
only children that watch their standard input (`end_asked`) are tied.
"""

import ctypes
import os
import signal
import sys
import threading
from queue import SimpleQueue

_PR_SET_PDEATHSIG = 1


def tie(parent: int) -> None:
    """Die with `parent`; exits at once if it is gone. A no-op where the kernel has no such thing.

    The setting survives `exec`. It follows the parent's *thread* that forked: the main one.
    """
    if sys.platform != "linux":
        return
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit(f"parent {parent} is gone")


def guarded(command: list[str]) -> list[str]:
    """`command`, tied to this process; as it is where the kernel has no such thing."""
    if sys.platform != "linux":
        return command
    return [sys.executable, "-m", "sessile.engines.guard", str(os.getpid()), *command]


def end_asked() -> SimpleQueue[None]:
    """Has something in it once this process is to end: SIGTERM, SIGINT, or the end of its standard
    input, which its parent held. For the main thread.

    NOTE: no Event: one set by a signal's handler while it is waited for there locks for ever.
    """
    asked: SimpleQueue[None] = SimpleQueue()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: asked.put(None))
    threading.Thread(target=_until_input_ends, args=(asked,), daemon=True).start()
    return asked


def _until_input_ends(asked: SimpleQueue[None]) -> None:
    while os.read(0, 1024):
        pass
    asked.put(None)


if __name__ == "__main__":
    tie(int(sys.argv[1]))
    os.execv(sys.argv[2], sys.argv[2:])
