"""Opens compressed and plain text files, with errors of one line that name the file and the line."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from disttrain.errors import UserError

COMPRESSED: Mapping[str, Callable[[Path, str], Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
# What reading a file raises that is damaged, or no longer readable.
READ_ERRORS = (OSError, EOFError, lzma.LZMAError, zlib.error)
_BYTE_ORDER_MARKS = {b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}


def open_bytes(path: Path) -> IO[bytes]:
    """Opens a file for reading, decompressed."""
    opener = COMPRESSED.get(path.suffix.lower())
    if opener is None:
        return path.open("rb")
    file: IO[bytes] = opener(path, "rb")
    return file


@contextmanager
def open_text(path: Path) -> Iterator[io.TextIOBase]:
    with open_bytes(path) as file, io.TextIOWrapper(file, encoding="utf-8-sig", newline="") as text:
        yield text


@contextmanager
def one_line_errors(path: Path) -> Iterator[None]:
    """Turns the errors of decoding and of the file system into one line."""
    try:
        yield
    except UnicodeDecodeError as error:
        raise _encoding_error(path, error) from None
    except READ_ERRORS as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(f"the file cannot be read: {reason}", where=str(path)) from error


def _encoding_error(path: Path, error: UnicodeDecodeError) -> UserError:
    """The error for a file that is not UTF-8, with the line of the first wrong byte."""
    hint = "save it as UTF-8"
    with open_bytes(path) as file:
        first = file.readline()
        if encoding := _BYTE_ORDER_MARKS.get(first[:2]):
            return UserError(f"the file is {encoding} text", where=str(path), hint=hint)
        number, line = 1, first
        while line:
            try:
                line.decode()
            except UnicodeDecodeError as wrong:
                byte = line[wrong.start]
                message = f"line {number} is not UTF-8 text: it has the byte 0x{byte:02x}"
                return UserError(message, where=str(path), hint=hint)
            number, line = number + 1, file.readline()
    return UserError(f"the file is not UTF-8 text: {error.reason}", where=str(path), hint=hint)
