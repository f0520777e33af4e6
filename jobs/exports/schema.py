"""The schema of the results as a typed table: the type of every column, in CSV, JSON and Parquet alike."""

from __future__ import annotations

import math
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from disttrain.records.json_values import to_json
from jobs.results.metric_columns import PREFIX
from jobs.results.result import COLUMNS


class Kind(StrEnum):
    """The type of a column; a missing value is null in all of them."""

    INT = "int64"
    FLOAT = "float64"
    BOOL = "bool"
    TEXT = "string"
    TEXTS = "list<string>"
    JSON = "JSON text"


_OF_TYPE = {int: Kind.INT, float: Kind.FLOAT, bool: Kind.BOOL, str: Kind.TEXT, tuple[str, ...]: Kind.TEXTS}
_OF_GROUPS = {
    "label": Kind.TEXT, "allocation": Kind.TEXT, "world_size": Kind.INT, "runs": Kind.INT, "completed": Kind.INT,
    "failed": Kind.INT, "seeds": Kind.TEXTS,
}  # fmt: skip
_STATISTICS = (".std", ".low", ".high")


@dataclass(frozen=True)
class TypedTable:
    """Rows of which every value has the type of its column, or is None.

    Attributes:
        kinds: The type of each column, in the order of the columns.
        rows: The values by column. Texts of several names are lists, nested values are JSON.
    """

    kinds: Mapping[str, Kind]
    rows: Sequence[Mapping[str, Any]]


def typed(rows: Sequence[Mapping[str, Any]]) -> TypedTable:
    """The typed table of rows as `Result.columns` or `seeds.group_rows` made them, or of the same from JSON.

    A field that varies has the type of its values; one of mixed values is JSON text.
    """
    names = list(dict.fromkeys(name for row in rows for name in row))
    kinds = {name: kind_of(name, names) or _kind_of_values([row.get(name) for row in rows]) for name in names}
    return TypedTable(kinds, [{name: _plain(row.get(name), kind) for name, kind in kinds.items()} for row in rows])


def kind_of(name: str, names: Sequence[str]) -> Kind | None:
    """The type of a column by its name; None for a field that varies.

    Args:
        name: The column.
        names: All columns of the table: those of groups hold means.

    Example:
        >>> kind_of("elapsed_s", ["run_id", "elapsed_s"]), kind_of("elapsed_s", ["elapsed_s", "elapsed_s.count"])
        (<Kind.INT: 'int64'>, <Kind.FLOAT: 'float64'>)
    """
    if "run_id" not in names:
        return _kind_in_groups(name, names)
    if name in COLUMNS:
        return kind_of_type(COLUMNS[name].type)
    if name.startswith(PREFIX):
        return Kind.FLOAT
    return None


def _kind_in_groups(name: str, names: Sequence[str]) -> Kind | None:
    if name in _OF_GROUPS:
        return _OF_GROUPS[name]
    if f"{name}.count" in names:
        return Kind.FLOAT
    if name.endswith(".count") and name.removesuffix(".count") in names:
        return Kind.INT
    if name.endswith(_STATISTICS) and name.rpartition(".")[0] in names:
        return Kind.FLOAT
    return None


def kind_of_type(annotated: Any) -> Kind:
    """The type of a column from that of its field: ``int | None`` is int64.

    Example:
        >>> kind_of_type(int | None), kind_of_type(dict[str, str])
        (<Kind.INT: 'int64'>, <Kind.JSON: 'JSON text'>)
    """
    if annotated in _OF_TYPE:
        return _OF_TYPE[annotated]
    kinds = [_OF_TYPE.get(part, Kind.JSON) for part in typing.get_args(annotated) if part is not type(None)]
    if len(kinds) == 1:
        return kinds[0]
    return Kind.JSON


def _kind_of_values(values: Sequence[Any]) -> Kind:
    """The type of all these values; whole and other numbers together are numbers, integers above 64 bits are JSON."""
    types = {type(value) for value in values if value is not None}
    if types in ({int, float}, {float}):
        return Kind.FLOAT
    if types == {int} and not all(-(2**63) <= value < 2**63 for value in values if value is not None):
        return Kind.JSON
    if len(types) == 1:
        return _OF_TYPE.get(types.pop(), Kind.JSON)
    return Kind.JSON


def _plain(value: Any, kind: Kind) -> Any:
    """A value in the type of its column: JSON has no number that is not finite, so no format has one."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return None
    if kind is Kind.JSON:
        return _text(value if isinstance(value, str) else to_json(value))
    if kind is Kind.TEXT:
        return _text(str(value))
    if kind is Kind.TEXTS:
        return [_text(str(item)) for item in value]
    if kind is Kind.FLOAT:
        return float(value)
    return value


def _text(text: str) -> str:
    r"""A text that UTF-8 can hold: half a surrogate pair becomes an escape sequence, as in the CSV.

    Example:
        >>> _text("a\udc80")
        'a\\udc80'
    """
    return text.encode(errors="backslashreplace").decode()
