"""Processes that files name: whether one of them still exists, as far as this machine can tell.

The number of a process means nothing on another machine, after a restart or in another container, and is used again.
"""

from __future__ import annotations

from pathlib import Path

import psutil

INITIAL_NAMESPACE = "effffffc"  # Linux's inode of the process ids outside of all containers
_STATE, _START_TICKS = 0, 19  # in /proc/PID/stat, after the name of the command
_ENDED = "ZX"  # a zombie has ended, and was not reaped


def pid_space() -> str | None:
    """What the process ids of this process are numbers of: this boot of this machine, and this container.

    Unlike the name of the machine it does not change while the machine runs, and no other machine has it. None on a
    machine that is not Linux.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{Path('/proc/self/ns/pid').stat().st_ino:x}"
    except OSError:
        return None


def start_ticks(pid: int) -> int | None:
    """When a process of this pid space has started, in ticks since the boot; None if that cannot be read.

    The time of day would not do: the clock of a laptop is set while a process runs.
    """
    fields = _stat_fields(pid)
    return int(fields[_START_TICKS]) if fields else None


def has_ended(pid: int, ticks: int | None) -> bool:
    """Whether the process of this pid space that has started at these ticks has ended; False if that is not known."""
    if not psutil.pid_exists(pid):
        return True
    fields = _stat_fields(pid)
    return bool(fields) and (fields[_STATE] in _ENDED or int(fields[_START_TICKS]) != ticks)


def _stat_fields(pid: int) -> list[str]:
    try:
        # The name of the command, in parentheses, may contain spaces.
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:  # it has ended, or the system hides the processes of others
        return []
