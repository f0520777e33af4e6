"""CPU and memory load of this rank and its host, with few reads: each may cost a busy rank a GIL switch."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

MIB = 2**20
TICK_S = 1 / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class HostState:
    """One reading. The CPU loads are averages since the previous reading, so they are None in the first one."""

    process_cpu_percent: float | None
    process_memory_mib: float
    host_cpu_percent: float | None
    host_memory_used_mib: float


class Host:
    """Reads the load. One thread must make all readings, because psutil saves its previous values per thread."""

    def __init__(self) -> None:
        self._before: tuple[float, float | None] | None = None  # (time, CPU seconds) of the previous reading

    def read(self) -> HostState:
        """The state now.

        Raises:
            OSError: The system does not provide the values.
        """
        now_s, used_s = time.monotonic(), self._cpu_s()
        before, self._before = self._before, (now_s, used_s)
        own_percent = None
        host_average = psutil.cpu_percent()  # the first call returns 0.0, for an empty interval
        host_percent = None if before is None else host_average
        if before is not None and used_s is not None and before[1] is not None:
            own_percent = max(0.0, used_s - before[1]) / max(1e-9, now_s - before[0]) * 100
        memory = psutil.virtual_memory()
        return HostState(
            process_cpu_percent=own_percent,
            process_memory_mib=self._resident_bytes() / MIB,
            host_cpu_percent=host_percent,
            host_memory_used_mib=(memory.total - memory.available) / MIB,
        )

    def _cpu_s(self) -> float | None:
        return cpu_s()

    def _resident_bytes(self) -> int:
        return _resident_bytes()


def cpu_s() -> float | None:
    """CPU seconds of this process and of its children so far: the workers that load its data, including ended ones.

    None if the kernel does not list children (CONFIG_PROC_CHILDREN). The kernel lists them per thread; the main thread
    starts the workers. psutil would scan all processes of the host. multiprocessing's list of children would collect
    the exit status of a worker that torch waits for.
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
        return 0.0  # the child has ended in the meantime
    fields = line.rpartition(b")")[2].split()  # proc(5): the third field and later; the name may contain spaces
    return (int(fields[11]) + int(fields[12])) * TICK_S


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_bytes().split()[1]) * os.sysconf("SC_PAGE_SIZE")
