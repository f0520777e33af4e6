"""The columns of a split, whatever they were read from: a table file, a folder of images, or `datasets`."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from datasets import Dataset

TEXT, NUMBERS, CLASSES, IMAGES, BYTES = "text", "numbers", "classes", "images", "bytes"
Rows = slice | Sequence[int]


class Column(Protocol):
    """The values of one column."""

    @property
    def kind(self) -> str:
        """What the values are: text, numbers, images, or another word in the plural."""

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """The names of the classes, if the values are indices into them."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: Rows) -> list[Any]: ...

    def select(self, rows: NDArray[np.int64]) -> Column:
        """The values of these rows, in this order."""
        ...


def _numbers(rows: Rows, count: int) -> Sequence[int]:
    return range(count)[rows] if isinstance(rows, slice) else rows


@dataclass(frozen=True)
class Table:
    """The rows of a split, as columns of equal length; `table["text"][10:20]` reads ten values.

    Attributes:
        columns: The columns by name.
        folder: The folder in which relative paths of images begin; None for the working directory.
    """

    columns: Mapping[str, Column]
    folder: Path | None = None

    def __len__(self) -> int:
        return len(next(iter(self.columns.values()), ()))

    def __getitem__(self, name: str) -> Column:
        return self.columns[name]

    def __contains__(self, name: str) -> bool:
        return name in self.columns

    def select(self, rows: NDArray[np.int64]) -> Table:
        return Table({name: column.select(rows) for name, column in self.columns.items()}, self.folder)

    def only(self, names: Sequence[str]) -> Table:
        return Table({name: self.columns[name] for name in names}, self.folder)


@dataclass(frozen=True)
class TextColumn:
    """Texts in one array of bytes, which all processes of a host share through the cache.

    Attributes:
        data: The texts in UTF-8, one after the other.
        offsets: Text i is data[offsets[i]:offsets[i + 1]].
        missing: The rows without a value, sorted.
        kind: text, or numbers if every text is a number; classes if every text is the index of a class.
        rows: The rows that this column has; None: all.
        class_names: The names of the classes.
    """

    data: NDArray[np.uint8]
    offsets: NDArray[np.int64]
    missing: frozenset[int]
    kind: str
    rows: NDArray[np.int64] | None = None
    class_names: tuple[str, ...] | None = None

    def __len__(self) -> int:
        return len(self.offsets) - 1 if self.rows is None else len(self.rows)

    def __getitem__(self, rows: Rows) -> list[Any]:
        values = self._texts(rows)
        if self.class_names is None:
            return values
        return [None if value is None else int(value) for value in values]

    def _texts(self, rows: Rows) -> list[Any]:
        chosen = _numbers(rows, len(self))
        if self.rows is not None:
            chosen = self.rows[np.array(chosen, dtype=np.int64)].tolist()
        return [None if row in self.missing else self._text(row) for row in chosen]

    def _text(self, row: int) -> str:
        # A JSON file may have half of a surrogate pair, which UTF-8 has no bytes for.
        return self.data[self.offsets[row] : self.offsets[row + 1]].tobytes().decode("utf-8", "surrogatepass")

    def select(self, rows: NDArray[np.int64]) -> TextColumn:
        chosen = rows if self.rows is None else self.rows[rows]
        return TextColumn(self.data, self.offsets, self.missing, self.kind, chosen, self.class_names)


@dataclass(frozen=True)
class ListColumn:
    """Values in memory."""

    values: Sequence[Any]
    kind: str
    class_names: tuple[str, ...] | None = None

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, rows: Rows) -> list[Any]:
        return [self.values[row] for row in _numbers(rows, len(self))]

    def select(self, rows: NDArray[np.int64]) -> ListColumn:
        return ListColumn([self.values[row] for row in rows.tolist()], self.kind, self.class_names)


@dataclass(frozen=True)
class ImageValues:
    """Images in the form of an undecoded image of `datasets`, whether a column has paths, bytes or that form.

    Attributes:
        column: The column.
        folder: The folder of relative paths; None for the working directory.
    """

    column: Column
    folder: Path | None = None
    kind: str = IMAGES
    class_names: tuple[str, ...] | None = None

    def __len__(self) -> int:
        return len(self.column)

    def __getitem__(self, rows: Rows) -> list[dict[str, Any] | None]:
        return list(map(self._value, self.column[rows]))

    def _value(self, value: Any) -> dict[str, Any] | None:
        if not value or isinstance(value, dict):
            return value or None
        if isinstance(value, bytes):
            return {"bytes": value, "path": None}
        path = os.path.expanduser(value)
        return {"bytes": None, "path": os.path.join(self.folder or "", path)}

    def select(self, rows: NDArray[np.int64]) -> ImageValues:
        return ImageValues(self.column.select(rows), self.folder)


@dataclass(frozen=True)
class DatasetColumn:
    """A column of a dataset of `datasets`, without others, so that reading it decodes nothing else."""

    dataset: Dataset
    name: str
    kind: str
    class_names: tuple[str, ...] | None = None

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, rows: Rows) -> list[Any]:
        values: list[Any] = self.dataset[rows][self.name]
        return values

    def select(self, rows: NDArray[np.int64]) -> DatasetColumn:
        chosen = self.dataset.select(rows, keep_in_memory=True)
        return DatasetColumn(chosen, self.name, self.kind, self.class_names)


def dataset_table(dataset: Dataset) -> Table:
    """The columns of a dataset; images stay undecoded."""
    from datasets import ClassLabel, Image

    columns: dict[str, Column] = {}
    for name, feature in dataset.features.items():
        kind = _kind_of(feature)
        rows = dataset.select_columns([name])
        if isinstance(feature, Image):
            rows = rows.cast_column(name, Image(decode=False))
        names = tuple(feature.names) if isinstance(feature, ClassLabel) else None
        columns[name] = DatasetColumn(rows, name, kind, names)
    return Table(columns)


def _kind_of(feature: Any) -> str:
    from datasets import ClassLabel, Image, Value

    if isinstance(feature, ClassLabel):
        return CLASSES
    if isinstance(feature, Image) or (isinstance(feature, dict) and set(feature) == {"bytes", "path"}):
        return IMAGES  # the second is how other libraries read a file written by `datasets`
    if isinstance(feature, Value):
        if "string" in feature.dtype:
            return TEXT
        if "binary" in feature.dtype:
            return BYTES
        return NUMBERS if feature.dtype.startswith(("int", "uint", "float", "decimal")) else f"{feature.dtype} values"
    return "lists" if isinstance(feature, list) or "List" in type(feature).__name__ else "mappings"


def silence_datasets() -> None:
    """Turns off the progress bars and warnings of `datasets`; the run's notices report what matters."""
    import datasets

    datasets.disable_progress_bars()
    datasets.logging.set_verbosity_error()
