"""CPU and memory load of a script with its children, and of its host."""

from __future__ import annotations

import os
from pathlib import Path

from disttrain.measure.host_load import TICK_S, Host

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class ScriptHost(Host):
    """Reads the load of a script and not of this process.

    Args:
        pid: The process of the script.
    """

    def __init__(self, pid: int) -> None:
        super().__init__()
        self._pid = pid

    def _cpu_s(self) -> float:
        """CPU seconds of the processes that live, and of those that they have waited for."""
        return sum(sum(map(int, _stat(pid)[11:15])) for pid in _processes(self._pid)) * TICK_S

    def _resident_bytes(self) -> int:
        """That of the largest process: pages that the others share with it would count twice."""
        return max((_resident_pages(pid) for pid in _processes(self._pid)), default=0) * _PAGE_BYTES


def _processes(pid: int) -> list[int]:
    """A process and all its children, as far as the main thread of each has started them."""
    found = [pid]
    for parent in found:
        try:
            found += map(int, Path(f"/proc/{parent}/task/{parent}/children").read_bytes().split())
        except OSError:
            continue  # it has ended, or the kernel does not list children (CONFIG_PROC_CHILDREN)
    return found


def _stat(pid: int) -> list[bytes]:
    """proc(5): the third field and later. The name before them may contain blanks."""
    try:
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return []


def _resident_pages(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_bytes().split()[1])
    except OSError:
        return 0
