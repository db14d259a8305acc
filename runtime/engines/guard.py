"""Ties a child to its parent: whatever kills the parent, SIGKILL too, ends the child.

`python -m sessile.engines.guard PARENT_PID COMMAND...` asks the kernel (Linux) to send SIGKILL
when the parent dies, makes sure that it has not died already, and becomes the command. Elsewhere
only children that watch their standard input (`sessile.engines.embedded`) are tied.
"""

import ctypes
import os
import signal
import sys

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


if __name__ == "__main__":
    tie(int(sys.argv[1]))
    os.execv(sys.argv[2], sys.argv[2:])
