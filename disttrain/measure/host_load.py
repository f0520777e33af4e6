"""CPU and memory of this rank and of its host, in few reads: each may cost a busy rank a switch of Python's lock."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

MIB = 2**20
_TICK_S = 1 / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class HostState:
    """One reading; what is told over a time is None at the first, which has no time behind it."""

    process_cpu_percent: float | None
    process_memory_mib: float
    host_cpu_percent: float | None
    host_memory_used_mib: float


class Host:
    """Reads the load; of one thread, since psutil keeps what it compares with for each."""

    def __init__(self) -> None:
        self._before: tuple[float, float | None] | None = None  # when, and the CPU seconds so far

    def read(self) -> HostState:
        """The state now.

        Raises:
            OSError: The system does not tell.
        """
        now_s, used_s = time.monotonic(), cpu_s()
        before, self._before = self._before, (now_s, used_s)
        host_percent = psutil.cpu_percent()  # at its first call 0.0, of no time at all
        own_percent = None
        if before is not None and used_s is not None and before[1] is not None:
            own_percent = max(0.0, used_s - before[1]) / max(1e-9, now_s - before[0]) * 100
        memory = psutil.virtual_memory()
        return HostState(
            process_cpu_percent=own_percent,
            process_memory_mib=_resident_bytes() / MIB,
            host_cpu_percent=None if before is None else host_percent,
            host_memory_used_mib=(memory.total - memory.available) / MIB,
        )


def cpu_s() -> float | None:
    """CPU seconds of this process and of its children so far: the workers that load its data, also those that ended.

    None where the kernel does not list children (CONFIG_PROC_CHILDREN). It does so for each thread: here it is the main
    one, which starts the workers. psutil would look through all processes of the host, multiprocessing's own list
    takes away the end of a worker that torch waits for.
    """
    pid = os.getpid()
    try:
        pids = Path(f"/proc/{pid}/task/{pid}/children").read_bytes().split()
    except OSError:
        return None
    live_s = sum(_child_s(child.decode()) for child in pids)
    ended = os.times()
    return time.process_time() + ended.children_user + ended.children_system + live_s


def _child_s(pid: str) -> float:
    try:
        line = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return 0.0  # it has ended just now
    fields = line.rpartition(b")")[2].split()  # proc(5): from the third field on; its name may hold blanks
    return (int(fields[11]) + int(fields[12])) * _TICK_S


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_bytes().split()[1]) * os.sysconf("SC_PAGE_SIZE")
