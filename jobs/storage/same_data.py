"""Whether a path of a sweep leads to the data of its earlier submissions, which may have been moved or copied."""

from __future__ import annotations

import filecmp
import os
from pathlib import Path

# Files of a copy are compared byte by byte up to this size in all; a login node should not read more.
_MOST_BYTES = 1 << 30


def is_same_data(before: str, now: str) -> bool:
    """Whether two paths are the same data: the first no longer exists, or both have the same files.

    Args:
        before: The path of an earlier submission.
        now: The path of this one. Both are of a config field with paths: a hub id is only the same as itself.
    """
    if before == now:
        return True
    if not (os.path.isabs(before) and os.path.isabs(now)) or os.path.basename(before) != os.path.basename(now):
        return False
    if not os.path.exists(before):
        return True  # moved; a run that resumes compares the data with those of its checkpoint
    files, others = _files(Path(before)), _files(Path(now))
    if files != others or sum(files.values()) > _MOST_BYTES:
        return False
    return all(filecmp.cmp(Path(before) / name, Path(now) / name, shallow=False) for name in files)


def _files(path: Path) -> dict[str, int]:
    """The size of each file at a path, by its path from there; that of a file itself has the name ''."""
    if path.is_file():
        return {"": path.stat().st_size}
    return {str(file.relative_to(path)): file.stat().st_size for file in path.rglob("*") if file.is_file()}
