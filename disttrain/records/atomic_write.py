"""Atomic file writes: a reader sees the old file or the complete new one, with `sync` also after a power cut."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def atomic_write(path: Path, *, sync: bool = True) -> Iterator[BinaryIO]:
    """Opens a file that gets its final name only after it is completely written.

    Args:
        path: The final name.
        sync: Whether to wait until the file and its name are on disk, so that they survive a power failure. This costs
            some ms per file; a file that can be written again does not need it.

    Yields:
        The temporary file, open for writing.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            yield file
            if sync:
                file.flush()
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if sync:
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def write_text(path: Path, text: str) -> None:
    """Writes a text file atomically, without fsync: a reader never sees a partial file."""
    with atomic_write(path, sync=False) as file:
        file.write(text.encode())
