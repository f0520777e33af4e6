"""Atomic file writes: a reader sees the old file or the complete new one, with `sync` also after a power cut."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def atomic_write(path: Path, *, sync: bool = True, private: bool = False) -> Iterator[BinaryIO]:
    """Opens a file that gets its final name only after it is completely written.

    Args:
        path: The final name.
        sync: Whether to wait until the file and its name are on disk, so that they survive a power failure. This costs
            some ms per file; a file that can be written again does not need it.
        private: Whether only the user may read the file.

    Yields:
        The temporary file, open for writing.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    mode = 0o666  # less the umask
    if private:
        mode = 0o600
    try:
        with open(temporary, "wb", opener=lambda name, flags: os.open(name, flags, mode)) as file:
            yield file
            if sync:
                file.flush()
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    if sync:
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def write_text(path: Path, text: str, *, private: bool = False) -> None:
    """Writes a text file atomically, without fsync: a reader never sees a partial file.

    Half a surrogate pair, which stands for a byte of a path that is not UTF-8, becomes an escape sequence.

    Raises:
        OSError: The file could not be written. Its filename is the path, also if the disk is full.
    """
    try:
        with atomic_write(path, sync=False, private=private) as file:
            file.write(text.encode(errors="backslashreplace"))
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
