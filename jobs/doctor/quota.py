"""What is left of the user's quota on a file system, from what `quota` or `lfs quota` prints."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from jobs.slurm.command import run_command

_BLOCK_BYTES = 1024
_LUSTRE = "lustre"
# A number of blocks, with a star if it is over its limit.
_BLOCKS = re.compile(r"([0-9]+)\*?")


def quota_left_bytes(folder: Path, environ: Mapping[str, str]) -> int | None:
    """What the user may still write on the file system of a folder; None without a quota, or if no command says it."""
    mount = find_mount(folder, Path("/proc/mounts").read_text(encoding="utf-8", errors="replace"))
    if mount is None:
        return None
    source, point, kind = mount
    command = ["quota", "--no-wrap", "--show-mntpoint", "--hide-device"]
    if kind == _LUSTRE:
        command = ["lfs", "quota", "-q", "-u", str(os.geteuid()), point]
    if shutil.which(command[0]) is None:
        return None
    try:
        done = run_command(command, environ)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return parse_quota(done.stdout, (point, source))


def find_mount(folder: Path, mounts: str) -> tuple[str, str, str] | None:
    """The device, the mount point and the type of the file system of a folder.

    Args:
        folder: The absolute folder.
        mounts: The text of /proc/mounts.

    Example:
        >>> find_mount(Path("/home/me/runs"), "/dev/sda1 / ext4 rw 0 0\\nnas:/home /home nfs4 rw 0 0\\n")
        ('nas:/home', '/home', 'nfs4')
    """
    found: tuple[str, str, str] | None = None
    for line in mounts.splitlines():
        source, point, kind, *_ = [*line.split(), "", "", ""]
        is_longer = found is None or len(point) >= len(found[1])
        if point and folder.is_relative_to(point) and is_longer:
            found = (source, point, kind)
    return found


def parse_quota(text: str, names: Sequence[str]) -> int | None:
    """What is left in the row of a file system; None if it has no row or no limit.

    The columns are the name, the blocks that are used, the soft limit and the hard limit, each of 1 KiB.

    Args:
        text: The output of `quota` or `lfs quota`.
        names: The names that the file system may have there.

    Example:
        >>> parse_quota("/home  900  1000  1200        5  0  0", ["/home"]), parse_quota("/home 9 0 0 5 0 0", ["/home"])
        (102400, None)
    """
    for line in text.splitlines():
        name, *columns = line.split() or [""]
        numbers = [match[1] for column in columns[:3] if (match := _BLOCKS.fullmatch(column))]
        if name in names and len(numbers) == 3:
            used, soft, hard = map(int, numbers)
            # Above the soft limit, writing ends after a time of grace.
            limit = soft or hard
            return max(0, limit - used) * _BLOCK_BYTES if limit else None
    return None
