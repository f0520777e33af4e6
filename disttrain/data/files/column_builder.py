"""Columns that are read once for all processes: rows are appended to arrays, which are then mapped from the cache."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from disttrain.data.array_cache import Append, Arrays
from disttrain.data.files.columns import NUMBERS, TEXT, TextColumn
from disttrain.data.files.table_files import Cell

CHUNK = 10_000  # rows that are read before they are appended
_NUMBER = re.compile(r"\s*[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?\s*", re.ASCII)


def files_state(files: Sequence[Path]) -> Iterator[bytes]:
    """What changes if a file is replaced or rewritten, also by one of the same size and modification time."""
    for file in files:
        stat = file.stat()
        yield os.fsencode(file.absolute())
        yield f"{stat.st_size} {stat.st_mtime_ns} {stat.st_ctime_ns} {stat.st_ino}".encode()


def text_column(arrays: Arrays, number: int, kind: str, class_names: tuple[str, ...] | None = None) -> TextColumn:
    """The column that the builder with this number has made."""
    missing = frozenset(arrays[f"missing-{number}"].tolist())
    return TextColumn(arrays[f"text-{number}"], arrays[f"offsets-{number}"], missing, kind, class_names=class_names)


class ColumnBuilder:
    """One column while its rows are read.

    Args:
        number: The number of the column, from 0.
        append: Appends rows to an array.
    """

    def __init__(self, number: int, append: Append) -> None:
        self._number = number
        self._append = append
        self._encoded: list[bytes] = []
        self._lengths: list[int] = []
        self._missing: list[int] = []
        self._end = self._rows = 0
        self._kinds: set[str] = set()
        append(f"offsets-{number}", np.zeros(1, dtype=np.int64))

    def add(self, cell: Cell) -> None:
        text = ""
        if cell is None:
            self._missing.append(self._rows)
        elif isinstance(cell, str):
            text = cell
            if TEXT not in self._kinds and text:
                self._kinds.add(NUMBERS if _NUMBER.fullmatch(text) else TEXT)
        else:
            self._kinds.add("lists" if isinstance(cell, list) else "mappings")
        encoded = text.encode("utf-8", "surrogatepass")
        self._encoded.append(encoded)
        self._lengths.append(len(encoded))
        self._rows += 1

    def flush(self) -> None:
        number = self._number
        self._append(f"text-{number}", np.frombuffer(b"".join(self._encoded), dtype=np.uint8))
        offsets = self._end + np.cumsum(np.array(self._lengths, dtype=np.int64))
        self._append(f"offsets-{number}", offsets)
        self._end = int(offsets[-1]) if len(offsets) else self._end
        self._append(f"missing-{number}", np.array(self._missing, dtype=np.int64))
        self._encoded, self._lengths, self._missing = [], [], []

    @property
    def kind(self) -> str:
        for kind in ("mappings", "lists", TEXT, NUMBERS):
            if kind in self._kinds:
                return kind
        return TEXT  # no row has a value
