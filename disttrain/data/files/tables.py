"""Reads the table files of a split once for all processes, as columns that are mapped from the cache."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from disttrain.data.array_cache import Append, arrays_in_memory, content_key, mapped_arrays
from disttrain.data.files.column_builder import CHUNK, ColumnBuilder, files_state, text_column
from disttrain.data.files.columns import Table
from disttrain.data.files.parquet import read_parquet
from disttrain.data.files.table_files import RowFile, check_is_content, table_format
from disttrain.errors import UserError

# The version of what this module, `column_builder` and `table_files` make of a file. Increase it with every change.
VERSION = 1
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
        arrays = mapped_arrays(content_key([b"table %d" % VERSION, *files_state(files)]), make)
    header: list[tuple[str, str]] = json.loads(arrays["header"].tobytes())
    columns = {name: text_column(arrays, number, kind) for number, (name, kind) in enumerate(header)}
    return Table(columns, files[0].parent.absolute())


def _append_rows(files: Sequence[Path], append: Append) -> None:
    opened = [RowFile(file) for file in files]
    names = list(dict.fromkeys(name for file in opened for name in file.names))
    if not names:
        raise UserError("the file has no rows", where=str(files[0]))
    builders = {name: ColumnBuilder(number, append) for number, name in enumerate(names)}
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
            if row_count % CHUNK == 0:
                _flush(builders)
    _flush(builders)
    header = json.dumps([(name, builder.kind) for name, builder in builders.items()])
    append("header", np.frombuffer(header.encode(), dtype=np.uint8))


def _flush(builders: Mapping[str, ColumnBuilder]) -> None:
    for builder in builders.values():
        builder.flush()


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
