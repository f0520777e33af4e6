"""The results as a Parquet file, with the schema of `jobs.exports.schema`."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from disttrain.errors import UserError, first_line
from jobs.exports.schema import Kind, TypedTable


def parquet_bytes(table: TypedTable) -> bytes:
    """A table as the content of a Parquet file.

    Raises:
        UserError: pyarrow is missing.
    """
    arrow, parquet = _arrow()
    types = {
        Kind.INT: arrow.int64(), Kind.FLOAT: arrow.float64(), Kind.BOOL: arrow.bool_(), Kind.TEXT: arrow.string(),
        Kind.TEXTS: arrow.list_(arrow.string()), Kind.JSON: arrow.string(),
    }  # fmt: skip
    # Parquet has one type for both kinds of text; the field says which one it is.
    fields = [arrow.field(name, types[kind], metadata={"kind": kind.value}) for name, kind in table.kinds.items()]
    buffer = io.BytesIO()
    parquet.write_table(arrow.Table.from_pylist(list(table.rows), schema=arrow.schema(fields)), buffer)
    return buffer.getvalue()


def read_parquet(path: Path) -> TypedTable:
    """The table of a Parquet file that `parquet_bytes` made.

    Raises:
        UserError: pyarrow is missing, or the file is another one.
    """
    arrow, parquet = _arrow()
    try:
        table = parquet.read_table(path)
        kinds = {field.name: Kind((field.metadata or {})[b"kind"].decode()) for field in table.schema}
    except (KeyError, ValueError, OSError, arrow.ArrowException) as error:
        hint = "sweep collect -o FILE.parquet makes one"
        message = f"{str(path)!r} is no Parquet file of results: {first_line(error)}"
        raise UserError(message, hint=hint) from None
    return TypedTable(kinds, table.to_pylist())


def _arrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        message = f"a Parquet file needs pyarrow: {error}"
        raise UserError(message, hint="in the checkout: pip install '.[report]'") from error
    return pyarrow, pyarrow.parquet
