"""The classes of a split: names as text, the index of each row's name, and the rows without a label."""

from __future__ import annotations

import math
import unicodedata
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from disttrain.data.files.columns import NUMBERS, TEXT, Column
from disttrain.errors import UserError, shorten

_NO_LABEL = -1  # in many datasets of whole-number labels, such as SNLI and those of GLUE
_MOST_NAMES = 5
_ACCEPTED = "use integers or words"
_CHUNK = 10_000  # rows


@dataclass(frozen=True)
class Labels:
    """The labels of one split.

    Attributes:
        names: The class names, by index.
        rows: The rows that have a label.
        indices: The index of the class of each of these rows.
        notices: What was changed or left out.
    """

    names: tuple[str, ...]
    rows: NDArray[np.int64]
    indices: NDArray[np.int64]
    notices: tuple[str, ...]


def read_labels(column: Column, name: str, split: str, known: tuple[str, ...] | None = None) -> Labels:
    """The labels of a column.

    Names are stripped and in the Unicode form NFC. Rows without a label, or with -1 among whole numbers from 0, are
    left out.

    Args:
        column: The column.
        name: Its name.
        split: The name of the split.
        known: The class names of the training split, which other splits must have too; None for the training split.

    Raises:
        UserError: The column has no classes; a label is not one of `known`; or more than half of the rows have none.
    """
    written = _names_of(column, name, split)
    forms = {text: unicodedata.normalize("NFC", text).strip() for text in set(written) if text is not None}
    names = [None if text is None else forms[text] for text in written]
    names = _without_labels(names, column, known)
    distinct = _distinct(names, column)
    _check_classes(distinct, name, split)
    notices = []
    changed = {str(text) for text, now in zip(written, names, strict=True) if now and text != now}
    if changed:
        listed = ", ".join(map(_quoted, sorted(changed)[:_MOST_NAMES]))
        notices.append(f"labels of {split!r} that were changed (blanks at the ends, Unicode form NFC): {listed}")
    if known is None:
        notices += _case_notices(distinct)
        if column.class_names is None and any(_number(text) == _NO_LABEL for text in distinct):
            notices.append(f"-1 is a class of {split!r}, because the other labels are not whole numbers from 0")
    known = known if known is not None else distinct
    index = {text: number for number, text in enumerate(known)}
    for row, text in enumerate(names):
        if text and text not in index:
            message = f"label {_quoted(text)} in row {row} of split {split!r} is out of range"
            raise UserError(f"{message}: the training split does not have it")
    rows = np.array([row for row, text in enumerate(names) if text], dtype=np.int64)
    missing = len(names) - len(rows)
    if len(rows) and missing > len(rows):
        message = f"{missing} of {len(names)} rows of split {split!r} have no label in column {name!r}"
        raise UserError(message, hint="name the column with the labels, or remove these rows")
    if missing:
        notice = f"left out {missing} of {len(names)} rows of {split!r} without a label in column {name!r}"
        if any(text is None and before for text, before in zip(names, written, strict=True)):
            notice += "; -1 counts as no label: if it is a class, write a word for it"
        notices.append(notice)
    indices = np.array([index[text] for text in names if text], dtype=np.int64)
    return Labels(tuple(known), rows, indices, tuple(notices))


def _names_of(column: Column, name: str, split: str) -> list[str | None]:
    """The label of each row as text; None for a row without one."""
    if column.class_names is None and column.kind not in (TEXT, NUMBERS, "bool values"):
        raise UserError(f"column {name!r} of split {split!r} has no classes, but {column.kind}", hint=_ACCEPTED)
    names: list[str | None] = []
    known: dict[str | None, str | None] = {}  # one string for each class: a million of them take much memory
    for start in range(0, len(column), _CHUNK):
        for row, value in enumerate(column[start : start + _CHUNK], start):
            if column.class_names is None:
                text = _as_name(value, name, split)
            else:
                text = _class_name(value, column.class_names, row, split)
            names.append(known.setdefault(text, text))
    return names


def _class_name(value: int | None, names: Sequence[str], row: int, split: str) -> str | None:
    if value is None or value == _NO_LABEL:
        return None
    if not 0 <= value < len(names):
        message = f"label {value} in row {row} of split {split!r} is out of range: there are {len(names)} classes"
        raise UserError(message)
    return names[value]


def _as_name(value: Any, name: str, split: str) -> str | None:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, float):  # pandas makes whole numbers floats if one is missing
        if not value.is_integer():
            raise _not_classes(name, split, str(value))
        value = int(value)
    return str(value)


def _without_labels(names: Sequence[str | None], column: Column, known: tuple[str, ...] | None) -> list[str | None]:
    """The names, with None in place of -1 where it means that there is no label.

    It does among other whole numbers that are not negative. -1 and 1 alone are two classes.
    """
    marked = {text for text in names if text and _number(text) == _NO_LABEL}
    if column.class_names is not None or not marked or marked & set(known or ()):
        return list(names)
    if known is None:
        others = {_number(text) for text in names if text and text not in marked}
        if others <= {1.0} or not all(value >= 0 and value.is_integer() for value in others):
            return list(names)
    return [None if text in marked else text for text in names]


def _number(text: str) -> float:
    """The value of a label; NaN if it is no number."""
    try:
        return float(text)
    except ValueError:
        return math.nan


def sorted_names(names: Collection[str]) -> tuple[str, ...]:
    """Class names in numeric order if all are numbers, else in alphabetical order.

    Example:
        >>> sorted_names({"10", "9", "09"}), sorted_names({"b", "10", "9"})
        (('09', '9', '10'), ('10', '9', 'b'))
    """
    if any(math.isnan(_number(text)) for text in names):
        return tuple(sorted(names))
    return tuple(sorted(names, key=lambda text: (float(text), text)))


def _distinct(names: Sequence[str | None], column: Column) -> tuple[str, ...]:
    """The class names of a split; those of a ClassLabel keep its order."""
    if column.class_names is not None:
        own = (unicodedata.normalize("NFC", text).strip() for text in column.class_names)
        return tuple(dict.fromkeys(own))
    return sorted_names({text for text in names if text})


def _check_classes(names: Sequence[str], name: str, split: str) -> None:
    """Refuses the values of a regression: numbers that are not all whole."""
    values = [_number(text) for text in names]
    if any(math.isnan(value) for value in values):
        return
    for value, text in zip(values, names, strict=True):
        if not value.is_integer():
            raise _not_classes(name, split, text)


def _not_classes(name: str, split: str, value: str) -> UserError:
    return UserError(f"column {name!r} of split {split!r} has no classes, but numbers such as {value}", hint=_ACCEPTED)


def _case_notices(names: Sequence[str]) -> list[str]:
    """A notice if names differ only in upper and lower case."""
    counts = Counter(text.casefold() for text in names)
    alike = [text for text in names if counts[text.casefold()] > 1]
    if not alike:
        return []
    listed = ", ".join(map(_quoted, alike[:_MOST_NAMES]))
    return [f"classes that differ only in upper and lower case: {listed}"]


def _quoted(text: str) -> str:
    return shorten(repr(text))
