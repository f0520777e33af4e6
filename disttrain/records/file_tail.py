"""Reads the end of a file of lines that may be large."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

# The number of bytes at the end of a file that are read, one size after the other.
_TAIL_SIZES_BYTES = (2**12, 2**16, 2**20, 2**24)


def read_tails(path: Path) -> Iterator[Sequence[bytes]]:
    """The complete lines at the end of a file, and what is after the last line end; each time of a longer part.

    Raises:
        OSError: The file cannot be read.
    """
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        for tail in _TAIL_SIZES_BYTES:
            file.seek(max(0, size - tail))
            lines = file.read().split(b"\n")
            if tail >= size:
                yield lines
                return
            yield lines[1:]  # the first line is truncated by the tail
