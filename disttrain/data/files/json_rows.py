"""Reads the records of JSON files: one object in each line, or a document."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from disttrain.data.files.text_files import open_text
from disttrain.errors import UserError, shorten

# The keys under which documents keep their records.
_LIST_NAMES = ("data", "rows", "records", "examples", "instances", "items")


def json_records(path: Path, *, may_be_document: bool) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """The line or the number of each record, and the record.

    Args:
        path: The file. It has one object in each line.
        may_be_document: Whether it may also be one list of objects, or one object that has such a list, or one object
            with a list for each column.

    Raises:
        UserError: It has no rows, or is not JSON.
    """
    if not may_be_document:
        yield from _json_lines(path)
        return
    with open_text(path) as file:
        first = ""
        for line in file:
            first = line.strip()
            if first:
                break
        if not first:
            raise UserError("the file is empty", where=str(path))
    record = _parse(first)
    if isinstance(record, dict) and not _is_document(record):
        yield from _json_lines(path)
        return
    with open_text(path) as file:
        content = file.read()
    document = _parse(content)
    if document is None:
        yield from _json_lines(path)  # it names the line that is wrong
        return
    yield from enumerate(_records_of(path, document), start=1)


def _json_lines(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    with open_text(path) as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except RecursionError:
                raise UserError(f"line {number} is nested too deeply", where=str(path)) from None
            except ValueError as error:
                message = f"line {number} is not JSON: {getattr(error, 'msg', error)}"
                raise UserError(message, where=str(path), hint="write one object in each line") from None
            if not isinstance(record, dict):
                raise UserError(f"line {number} is {shorten(repr(record))}, not an object", where=str(path))
            yield number, record


def _records_of(path: Path, document: Any) -> Sequence[Mapping[str, Any]]:
    """The records of a complete JSON document."""
    records = document
    if isinstance(document, dict):
        records = _list_in(document)
        if records is None and _is_columns(document):
            columns: dict[str, list[Any]] = document
            lengths = {len(values) for values in columns.values()}
            if len(lengths) > 1:
                raise UserError("its columns differ in length", where=str(path))
            return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
        if records is None:
            lists = _object_lists(document)
            if len(lists) > 1:
                message = f"it holds several lists: {', '.join(map(repr, lists))}"
                raise UserError(message, where=str(path), hint="write one file for each, such as train.json")
            records = [document]
    if not isinstance(records, list) or not all(isinstance(record, dict) for record in records):
        hint = "write a list of objects, or one object in each line"
        raise UserError("it holds no rows", where=str(path), hint=hint)
    return records


def _is_document(record: Mapping[str, Any]) -> bool:
    """Whether an object is a document with records, and not a record."""
    return _is_columns(record) or _list_in(record) is not None or len(_object_lists(record)) > 1


def _object_lists(record: Mapping[str, Any]) -> list[str]:
    return [name for name, values in record.items() if isinstance(values, list) and _has_objects(values)]


def _is_columns(record: Mapping[str, Any]) -> bool:
    lists = list(record.values())
    return len(lists) > 1 and all(isinstance(values, list) and not _has_objects(values) for values in lists)


def _has_objects(values: Sequence[Any]) -> bool:
    return bool(values) and isinstance(values[0], dict)


def _list_in(record: Mapping[str, Any]) -> list[Any] | None:
    """The list of objects in an object such as `{"data": [{"text": ...}, ...]}`; None without one."""
    for name in _LIST_NAMES:
        values = record.get(name)
        if isinstance(values, list) and _has_objects(values):
            return values
    return None


def _parse(text: str) -> Any:
    """The value of a JSON text; None if it is not JSON, such as the first line of a document."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
