"""Reads the results that `sweep collect -o FILE` has written as CSV or JSON, with the types of every column."""

from __future__ import annotations

import contextlib
import csv
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from disttrain.errors import UserError
from disttrain.records.json_values import parse_object
from jobs.exports.schema import Kind, TypedTable, kind_of, typed


def read_results(path: Path) -> TypedTable:
    """The table of a results file: of runs, or of groups.

    Args:
        path: A file that ends with .csv or .json. CSV has no types: a field that varies gets its type from its texts.

    Raises:
        UserError: The file cannot be read, or does not hold results.
    """
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".json":
            return typed(_json_rows(text))
        return typed(_csv_rows(text))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, csv.Error) as error:
        hint = "sweep collect -o FILE.csv or FILE.json makes one"
        raise UserError(f"{str(path)!r} cannot be read as results: {error}", hint=hint) from None


def _json_rows(text: str) -> list[dict[str, Any]]:
    """The rows, without the complete configs, which only JSON has."""
    document = parse_object(text)
    rows = document["groups"] if "groups" in document else document["runs"]
    return [{name: value for name, value in row.items() if name != "config"} for row in rows]


def _csv_rows(text: str) -> list[dict[str, Any]]:
    header, *lines = csv.reader(io.StringIO(text, newline="")) if text else [[]]
    if not {"run_id", "label"} & set(header):
        raise ValueError("it has no column run_id")
    if any(len(line) != len(header) for line in lines):
        raise ValueError("its lines have different numbers of cells")
    columns = [[line[place] for line in lines] for place in range(len(header))]
    parsers = [
        _PARSERS[kind_of(name, header) or _kind_of_texts(texts)] for name, texts in zip(header, columns, strict=True)
    ]
    return [
        {name: parse(cell) if cell else None for name, parse, cell in zip(header, parsers, line, strict=True)}
        for line in lines
    ]


def _kind_of_texts(texts: Sequence[str]) -> Kind:
    """The narrowest type of which all the texts are."""
    for kind in (Kind.BOOL, Kind.INT, Kind.FLOAT):
        with contextlib.suppress(ValueError):
            for text in filter(None, texts):
                _PARSERS[kind](text)
            return kind
    return Kind.TEXT


def _parse_bool(text: str) -> bool:
    """A truth value as CSV has it.

    Example:
        >>> _parse_bool("True"), _parse_bool("False")
        (True, False)
    """
    if text not in ("True", "False"):
        raise ValueError(f"{text!r} is not True or False")
    return text == "True"


def _parse_texts(text: str) -> list[str]:
    """Several names as CSV has them: joined by commas, or as JSON if one of them has a comma or a blank.

    Example:
        >>> _parse_texts("a,b"), _parse_texts("none"), _parse_texts('["a b"]')
        (['a', 'b'], [], ['a b'])
    """
    if text == "none":
        return []
    if text.startswith("["):
        with contextlib.suppress(ValueError):
            return list(json.loads(text))
    return text.split(",")


_PARSERS: dict[Kind, Callable[[str], Any]] = {
    Kind.INT: int,
    Kind.FLOAT: float,
    Kind.BOOL: _parse_bool,
    Kind.TEXT: str,
    Kind.TEXTS: _parse_texts,
    Kind.JSON: str,
}
