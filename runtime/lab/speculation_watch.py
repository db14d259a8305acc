"""By what the speculation benchmark is timed: the clock, or what the process of the replica that
ran a turn has computed.

On cores that others share, a replica's processor time passes as the clock would if it had a core
to itself. Replicas that run side by side compute side by side, so each turn has the time of its
own one only.
"""

import os
import time
from collections.abc import Callable, Mapping

from sessile.errors import SettingsError

Watch = Callable[[str], float]
"""Seconds since it was started, by the time of that replica."""


def start(pids: Mapping[str, int]) -> Watch:
    """A watch for these replicas' processes, by their ids; by the clock where there are none.
    Raises `SettingsError`, as the watch does."""
    if not pids:
        began = time.perf_counter()
        return lambda replica: time.perf_counter() - began
    computed = {replica: computed_s(pid) for replica, pid in pids.items()}
    return lambda replica: computed_s(pids[replica]) - computed[replica]


def computed_s(pid: int) -> float:
    """Processor time of a process, from Linux's /proc/PID/stat; its name may hold spaces. Raises
    `SettingsError`."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            fields = file.read().rpartition(")")[2].split()
    except OSError as error:
        raise SettingsError(f"--pids: there is no process {pid} to be timed ({error})") from error
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
