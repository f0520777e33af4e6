"""Atomic file writes: after a crash a file is either complete or absent."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def atomic_write(path: Path, *, sync: bool = True) -> Iterator[BinaryIO]:
    """Opens a file that appears under its name only when all of it is written.

    Args:
        path: The final name.
        sync: Wait until file and name are on the disk, so that they survive a power cut too. It costs some ms a file:
            leave it out for a file that can be written again.
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
    """Writes a text file atomically, without waiting for the disk: a reader never sees half of it."""
    with atomic_write(path, sync=False) as file:
        file.write(text.encode())
