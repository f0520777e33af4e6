"""Reads parquet files: texts, whole numbers and classes once into the cache; what else they hold by `datasets`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from disttrain.data.array_cache import Append, Arrays, cache_folder, content_key, find_arrays, mapped_arrays
from disttrain.data.files.column_builder import CHUNK, ColumnBuilder, files_state, text_column
from disttrain.data.files.columns import CLASSES, NUMBERS, TEXT, Table, dataset_table, silence_datasets

# The version of what this module makes of a file. Increase it with every change.
VERSION = 2
_HEADER = "header"
# The name, the kind and the class names of each column.
Header = list[tuple[str, str, list[str] | None]]


def read_parquet(files: Sequence[Path]) -> Table:
    """The rows of parquet files of one split.

    A file of texts, whole numbers and classes is read once for all processes; later ones map it, without pyarrow.
    """
    key = content_key([b"parquet %d" % VERSION, *files_state(files)])
    arrays = find_arrays(key)
    if arrays is None:
        header = _plain_header(files)
        if header is None:
            return _read_with_datasets(files, key)
        arrays = mapped_arrays(key, lambda append: _append_rows(files, header, append))
    return _table(arrays, files[0].parent.absolute())


def _table(arrays: Arrays, folder: Path) -> Table:
    header: Header = json.loads(arrays[_HEADER].tobytes())
    columns = {}
    for number, (name, kind, names) in enumerate(header):
        class_names = None if names is None else tuple(names)
        columns[name.strip()] = text_column(arrays, number, kind, class_names)
    return Table(columns, folder)


def _plain_header(files: Sequence[Path]) -> Header | None:
    """The columns of some files; None if `datasets` must read them.

    It also reads files that are damaged or differ in their columns: its errors say what is wrong.
    """
    import pyarrow
    from pyarrow import parquet

    try:
        schemas = [parquet.read_schema(file) for file in files]
    except (OSError, pyarrow.ArrowException):
        return None
    headers = [[(field.name, *_kind_of(field, schema)) for field in schema] for schema in schemas]
    header = headers[0]
    names = [name.strip() for name, *_ in header]
    if not header or len(set(names)) < len(names) or any(other != header for other in headers):
        return None
    if any(kind is None for _, kind, _ in header):
        return None
    return header


def _kind_of(field: Any, schema: Any) -> tuple[Any, list[str] | None]:
    """The kind of a column, and its class names; the kind is None for other columns than texts, integers and classes.

    `datasets` writes its own types into the metadata of a file.
    """
    from pyarrow import types

    feature: Any = _json_of(schema)
    for name in ("info", "features", field.name):
        feature = {} if feature is None else feature
        if not isinstance(feature, dict):
            return None, None  # in former releases, a list of mappings was described by a list
        feature = feature.get(name)
    feature = {} if feature is None else feature
    if not isinstance(feature, dict) or feature.get("_type", "Value") not in ("Value", "ClassLabel"):
        return None, None
    if types.is_string(field.type) or types.is_large_string(field.type) or types.is_string_view(field.type):
        return TEXT, None
    if not types.is_integer(field.type):
        return None, None
    # `datasets` trusts the description only if the file has the type that it writes for it.
    if feature.get("_type") == "ClassLabel" and types.is_int64(field.type) and field.nullable:
        return CLASSES, feature["names"]
    return NUMBERS, None


def _json_of(schema: Any) -> Any:
    try:
        return json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
    except ValueError:
        return []


def _append_rows(files: Sequence[Path], header: Header, append: Append) -> None:
    from pyarrow import parquet

    builders = [ColumnBuilder(number, append) for number in range(len(header))]
    for file in files:
        with parquet.ParquetFile(file) as opened:
            for batch in opened.iter_batches(CHUNK):
                for builder, column in zip(builders, batch.columns, strict=True):
                    for value in column.to_pylist():
                        builder.add(value if value is None or isinstance(value, str) else str(value))
                    builder.flush()
    for builder in builders:
        builder.flush()  # a file without rows has no batch
    append(_HEADER, np.frombuffer(json.dumps(header).encode(), dtype=np.uint8))


def _read_with_datasets(files: Sequence[Path], key: str) -> Table:
    """The rows, by `datasets`, which keeps a copy that processes map."""
    import datasets

    silence_datasets()
    # Its own key has the time of a file only; a folder for each state of the files makes it read a replaced file again.
    cache = cache_folder() / "parquet" / key
    loaded = datasets.load_dataset("parquet", data_files={"train": [str(file) for file in files]}, cache_dir=str(cache))
    table = dataset_table(loaded["train"])
    return Table({name.strip(): column for name, column in table.columns.items()}, files[0].parent.absolute())
