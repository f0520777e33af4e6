"""Reads the table files of a split once for all processes, as columns that are mapped from the cache."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from disttrain.data.array_cache import Append, Arrays, arrays_in_memory, cache_folder, content_key, mapped_arrays
from disttrain.data.files.columns import NUMBERS, TEXT, Table, TextColumn, dataset_table, silence_datasets
from disttrain.data.files.table_files import Cell, RowFile, check_is_content, table_format
from disttrain.errors import UserError

# The version of what this module and `table_files` make of a file. Increase it with every change of them.
VERSION = 1
_NUMBER = re.compile(r"\s*[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?\s*", re.ASCII)
_CHUNK = 10_000  # rows
# Files of at least this size in all are cached. Reading 1 MB of rows takes 20 to 50 ms.
_CACHED_FROM_BYTES = 1_000_000


def read_files(files: Sequence[Path]) -> Table:
    """The rows of csv, tsv or JSON files of one split, read once for all processes and mapped from the cache.

    Raises:
        UserError: A file cannot be read, or a row does not fit its header.
    """

    def make(append: Append) -> None:
        _append_rows(files, append)

    if sum(file.stat().st_size for file in files) < _CACHED_FROM_BYTES:
        arrays = arrays_in_memory(make)
    else:
        arrays = mapped_arrays(content_key(_state(files)), make)
    header: list[tuple[str, str]] = json.loads(arrays["header"].tobytes())
    columns = {name: _text_column(arrays, number, kind) for number, (name, kind) in enumerate(header)}
    return Table(columns, files[0].parent.absolute())


def _state(files: Sequence[Path]) -> Iterator[bytes]:
    """What changes if a file is replaced or rewritten, also by one of the same size and modification time."""
    yield f"table {VERSION}".encode()
    for file in files:
        stat = file.stat()
        yield os.fsencode(file.absolute())
        yield f"{stat.st_size} {stat.st_mtime_ns} {stat.st_ctime_ns} {stat.st_ino}".encode()


def _text_column(arrays: Arrays, number: int, kind: str) -> TextColumn:
    missing = frozenset(arrays[f"missing-{number}"].tolist())
    return TextColumn(arrays[f"text-{number}"], arrays[f"offsets-{number}"], missing, kind)


class _Builder:
    """One column while its rows are read."""

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


def _append_rows(files: Sequence[Path], append: Append) -> None:
    opened = [RowFile(file) for file in files]
    names = list(dict.fromkeys(name for file in opened for name in file.names))
    if not names:
        raise UserError("the file has no rows", where=str(files[0]))
    builders = {name: _Builder(number, append) for number, name in enumerate(names)}
    row_count = 0
    for file in opened:
        lacking = [name for name in names if name not in file.names]
        if lacking and not file.may_lack_columns:
            hint = "all files of a split have the same columns"
            raise UserError(f"it has no column {lacking[0]!r}, which other files have", where=str(file.path), hint=hint)
        in_order = [builders[name] for name in file.names]
        for row in file.rows():
            for builder, cell in zip(in_order, row, strict=True):
                builder.add(cell)
            for name in lacking:
                builders[name].add(None)
            row_count += 1
            if row_count % _CHUNK == 0:
                _flush(builders)
    _flush(builders)
    header = json.dumps([(name, builder.kind) for name, builder in builders.items()])
    append("header", np.frombuffer(header.encode(), dtype=np.uint8))


def _flush(builders: Mapping[str, _Builder]) -> None:
    for builder in builders.values():
        builder.flush()


def read_parquet(files: Sequence[Path]) -> Table:
    """The rows of parquet files of one split, by `datasets`, which keeps a copy that processes map."""
    import datasets

    silence_datasets()
    # Its own key has the time of a file only; a folder for each state of the files makes it read a replaced file again.
    cache = cache_folder() / "parquet" / content_key(_state(files))
    loaded = datasets.load_dataset("parquet", data_files={"train": [str(file) for file in files]}, cache_dir=str(cache))
    table = dataset_table(loaded["train"])
    return Table({name.strip(): column for name, column in table.columns.items()}, files[0].parent.absolute())


def read_tables(files: Sequence[Path]) -> Table:
    """The rows of table files of one format.

    Raises:
        UserError: A file cannot be read, or a row does not fit its header.
    """
    for file in files:
        check_is_content(file)
    if table_format(files[0]) == ".parquet":
        return read_parquet(files)
    return read_files(files)
