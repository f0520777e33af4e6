"""Reads the rows of csv, tsv and JSON files as text, and refuses what would lose a part of a row."""

from __future__ import annotations

import csv
import math
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from io import TextIOBase
from pathlib import Path
from typing import Any

from disttrain.data.files.json_rows import json_records
from disttrain.data.files.text_files import COMPRESSED, READ_ERRORS, one_line_errors, open_bytes, open_text
from disttrain.errors import UserError, shorten

# A value as text; None if the row has none. A list or a mapping stays as it is: it is neither text nor a number.
Cell = str | None | list[Any] | dict[str, Any]
Row = Sequence[Cell]

_ROW_FORMATS = (".csv", ".tsv", ".json", ".jsonl", ".ndjson")
SUFFIXES = (*_ROW_FORMATS, ".parquet")
_READ_BYTES = 1 << 20
_MOST_COLUMNS = 1000
_LFS_POINTER = b"version https://git-lfs"
csv.field_size_limit(sys.maxsize)  # by default a text of 128 kB is refused


class _WrongRowError(Exception):
    """A row does not fit the header."""


def table_format(path: Path) -> str | None:
    """The format of a table file, by its suffix without that of a compression; None if it is no table.

    Example:
        >>> table_format(Path("TRAIN.CSV")), table_format(Path("a.jsonl.gz")), table_format(Path("a.parquet.gz"))
        ('.csv', '.jsonl', None)
    """
    suffixes = [suffix.lower() for suffix in path.suffixes[-2:]]
    if suffixes and suffixes[-1] in COMPRESSED:
        inner = suffixes[0] if len(suffixes) == 2 else ""
        return inner if inner in _ROW_FORMATS else None
    if suffixes and suffixes[-1] in SUFFIXES:
        return suffixes[-1]
    return None


def table_stem(path: Path) -> str:
    """The name of a table file without the suffixes of its format and compression."""
    name = path.name
    for _ in range(2 if path.suffix.lower() in COMPRESSED else 1):
        name = name[: name.rindex(".")]
    return name


class RowFile:
    """The column names and the rows of one file; `rows` may be read again.

    Args:
        path: The file.

    Raises:
        UserError: The file cannot be read, is not UTF-8 text, or a row does not fit. The message names file and line.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._format = table_format(path)
        assert self._format in _ROW_FORMATS
        self._quoted = True
        if self._format == ".tsv":
            self._quoted = _has_quoted_fields(path)
        with one_line_errors(path):
            self.names = self._read_names()

    @property
    def may_lack_columns(self) -> bool:
        """Whether a column without a value is left out, as in JSON."""
        return self._format not in (".csv", ".tsv")

    def rows(self) -> Iterator[Row]:
        """The rows, each with one cell for each of `names`."""
        with one_line_errors(self.path):
            if self._format in (".csv", ".tsv"):
                yield from self._delimited_rows()
            else:
                for _, record in self._records():
                    yield self._json_row(record)

    def _read_names(self) -> tuple[str, ...]:
        if self._format in (".csv", ".tsv"):
            return self._header()
        names: dict[str, None] = {}
        for _, record in self._records():
            names.update(dict.fromkeys(record))
        stripped = tuple(name.strip() for name in names)
        _check_names(self.path, stripped)
        self._json_names = tuple(names)
        return stripped

    def _header(self) -> tuple[str, ...]:
        with open_text(self.path) as file:
            try:
                first = next(filter(None, self._reader(file)), ())
            except csv.Error as error:
                raise self._quoting_error(1, error) from None
        names = [name.strip() for name in first]
        while names and not names[-1]:
            names.pop()  # a comma at the end of the line
        if not names:
            raise UserError("the file has no header", where=str(self.path), hint="name the columns in its first line")
        if len(names) == 1:
            _check_separator(self.path, names[0], self._delimiter)
        _check_names(self.path, names)
        return tuple(names)

    @property
    def _delimiter(self) -> str:
        return "\t" if self._format == ".tsv" else ","

    def _reader(self, file: TextIOBase) -> Any:
        if self._quoted:
            return csv.reader(file, delimiter=self._delimiter, strict=True)
        return csv.reader(file, delimiter=self._delimiter, quoting=csv.QUOTE_NONE, strict=True)

    def _delimited_rows(self) -> Iterator[Row]:
        with open_text(self.path) as file:
            reader = self._reader(file)
            before = 0
            header_read = False
            try:
                for fields in reader:
                    line, before = before + 1, reader.line_num
                    if fields and header_read:
                        yield _fitting(fields, len(self.names), line)
                    header_read = header_read or bool(fields)
            except csv.Error as error:
                raise self._quoting_error(before + 1, error) from None
            except _WrongRowError as error:
                raise UserError(str(error), where=str(self.path), hint=self._field_hint()) from None

    def _quoting_error(self, line: int, error: csv.Error) -> UserError:
        hint = 'a text with a comma, a quote or a line end must be "quoted", with each quote in it doubled'
        return UserError(f"the row in line {line} cannot be read: {error}", where=str(self.path), hint=hint)

    def _field_hint(self) -> str:
        if self._format == ".tsv":
            return "a text must not contain a tab"
        return "quote each text that contains a comma"

    def _records(self) -> Iterator[tuple[int, Mapping[str, Any]]]:
        return json_records(self.path, may_be_document=self._format == ".json")

    def _json_row(self, record: Mapping[str, Any]) -> Row:
        return [_as_cell(record.get(name)) for name in self._json_names]


def _fitting(fields: list[str], columns: int, line: int) -> list[str]:
    """The fields of a row without separators at its end.

    Raises:
        _WrongRowError: There are more or fewer fields than columns.
    """
    count = len(fields)
    if count > columns and not any(fields[columns:]):
        return fields[:columns]
    if count != columns:
        unit = "field" if count == 1 else "fields"
        raise _WrongRowError(f"line {line} has {count} {unit}, but the header has {columns}")
    return fields


def _check_separator(path: Path, name: str, delimiter: str) -> None:
    for other, text in ((";", "semicolons"), ("\t", "tabs"), (",", "commas"), ("|", "bars")):
        if other != delimiter and other in name:
            wanted = "tabs" if delimiter == "\t" else "commas"
            message = f"the only column is {shorten(repr(name))}: its fields seem to be separated by {text}"
            raise UserError(message, where=str(path), hint=f"separate them by {wanted}, or change the suffix")


def _check_names(path: Path, names: Sequence[str]) -> None:
    if len(names) > _MOST_COLUMNS:
        hint = "each row is one line, or one object of a list"
        raise UserError(f"it has {len(names)} columns", where=str(path), hint=hint)
    twice = sorted(name for name, count in Counter(names).items() if count > 1)
    if twice:
        raise UserError(f"column {twice[0]!r} occurs twice", where=str(path), hint="give each column its own name")


def _has_quoted_fields(path: Path) -> bool:
    """Whether the fields of a tsv file are quoted, as spreadsheets write them.

    The quotation marks of plain text are not: then a field has one that is not closed, or more follows it. A quoted
    field with both a tab and a line end may be two rows of plain text; it is, if no field of one line is in quotes.
    """
    if not _contains(path, b'"'):
        return False
    may_be_rows = False
    try:
        with open_text(path) as file:
            for fields in csv.reader(file, delimiter="\t", strict=True):
                may_be_rows = may_be_rows or any("\t" in field and "\n" in field for field in fields)
        if not may_be_rows:
            return True
        with open_text(path) as file:
            plain = csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE, strict=True)
            return any(len(field) > 1 and field[0] == field[-1] == '"' for fields in plain for field in fields)
    except (csv.Error, UnicodeDecodeError, *READ_ERRORS):
        return False  # what cannot be read is reported when the rows are read


def check_is_content(path: Path) -> None:
    """Checks that a file is not the pointer that Git leaves in place of a large file."""
    try:
        with path.open("rb") as file:
            is_pointer = file.read(len(_LFS_POINTER)) == _LFS_POINTER
    except OSError:
        return  # reported when the file is read
    if is_pointer:
        raise UserError("it is a pointer of Git LFS, not the data", where=str(path), hint="git lfs pull gets the data")


def _contains(path: Path, text: bytes) -> bool:
    try:
        with open_bytes(path) as file:
            while part := file.read(_READ_BYTES):
                if text in part:
                    return True
    except READ_ERRORS:
        pass  # reported when the rows are read
    return False


def _as_cell(value: Any) -> Cell:
    if isinstance(value, float):
        if math.isnan(value):
            return None  # pandas writes it for a missing value
        if value.is_integer():
            return str(int(value))  # and makes whole numbers floats if one is missing
    if value is None or isinstance(value, str | list | dict):
        return value
    return str(value)
