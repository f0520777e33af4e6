"""The files of records: JSON lines that a rank appends, and objects that are there whole or not at all."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import socket
import time
import traceback
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from disttrain.errors import UserError
from disttrain.records.atomic_write import atomic_write
from disttrain.records.record_types import KINDS, Record
from disttrain.records.summary_types import Failure

T = TypeVar("T")

# Figures that an earlier release wrote under another name; records and summaries with the old names are still read.
FORMER_NAMES = {
    "exposed_ms": "exposed_comm_ms",
    "exposed_p95_ms": "exposed_comm_p95_ms",
    "exposed_min_ms": "exposed_comm_min_ms",
    "hidden_ms": "overlapped_comm_ms",
    "hidden_p95_ms": "overlapped_comm_p95_ms",
    "hidden_min_ms": "overlapped_comm_min_ms",
}

SUMMARY_NAME = "summary.json"
RUN_NAME = "run.json"
CHECKPOINTS_NAME = "checkpoints"
METRICS_GLOB = "metrics-rank*.jsonl"
FAILURE_GLOB = "failure-rank*.json"


def metrics_name(rank: int) -> str:
    """File name of the records of one rank.

    Example:
        >>> metrics_name(3)
        'metrics-rank00003.jsonl'
    """
    return f"metrics-rank{rank:05d}.jsonl"


def failure_name(rank: int) -> str:
    """File name of what one rank says about its own failure."""
    return f"failure-rank{rank:05d}.json"


@dataclass(frozen=True)
class RecordPosition:
    """How far a rank's records are written, and what is written: enough to find out whether a file still begins so."""

    size_bytes: int = 0
    crc32: int = 0


def is_intact(path: Path, written: RecordPosition) -> bool:
    """Whether a file begins with exactly what was written."""
    if written.size_bytes == 0:
        return True
    try:
        with path.open("rb") as file:
            return zlib.crc32(file.read(written.size_bytes)) == written.crc32
    except OSError:
        return False


def records_after(path: Path, written: RecordPosition) -> Iterator[Record]:
    """The records behind what was written, up to the first that is torn or of another version."""
    if not path.exists():
        return
    with path.open("rb") as file:
        file.seek(written.size_bytes)
        for line in file:
            try:
                yield decode(line.decode())
            except (ValueError, TypeError):
                return


class RecordWriter:
    """Appends records to one rank's file, a JSON object a line.

    Lines are buffered: a flush for every step costs 6 % of a 12 ms step, and the loop hands over many steps at once.

    Args:
        path: The file.
        kept: Of an earlier attempt's records, the part to go on behind: the steps before its checkpoint.
    """

    def __init__(self, path: Path, kept: RecordPosition = RecordPosition()) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        # A file of its own: an older attempt that still lives writes into the one it has open, which is then nobody's.
        with atomic_write(path) as file:
            if kept.size_bytes:
                with path.open("rb") as earlier:
                    file.write(earlier.read(kept.size_bytes))
        self._file = path.open("ab")
        self._written = kept

    def write(self, records: Sequence[Record]) -> None:
        """Appends the records and hands them to the operating system."""
        lines = "".join(encode(record) + "\n" for record in records).encode()
        self._file.write(lines)
        self._file.flush()
        before = self._written
        self._written = RecordPosition(before.size_bytes + len(lines), zlib.crc32(lines, before.crc32))

    def sync(self) -> RecordPosition:
        """Waits until all records are on the disk, before a checkpoint counts on them."""
        os.fsync(self._file.fileno())
        return self._written

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def encode(record: Record) -> str:
    """One line of JSON, its kind first."""
    return json.dumps({"kind": record.kind, **_plain(record)}, allow_nan=False)


def _plain(value: Any) -> dict[str, Any]:
    """A dataclass as JSON takes it: a loss that has become NaN or infinite is null, since JSON has no such number."""
    return {
        name: None if isinstance(item, float) and not math.isfinite(item) else item
        for name, item in dataclasses.asdict(value).items()
    }


def decode(line: str) -> Record:
    """The record of one line; fields that a newer version wrote and this one does not know are left out.

    Raises:
        ValueError: The line is not a record of a known kind.
    """
    values = json.loads(line)
    kind = KINDS.get(values.pop("kind", ""))
    if kind is None:
        raise ValueError(f"not a record: {line[:80]!r}")
    return from_json(kind, values)


def read_records(path: Path) -> Iterator[Record]:
    """The records of one file, oldest first; a last line that is still being written is left out."""
    with path.open(encoding="utf-8") as file:
        for line in file:
            if line.endswith("\n"):
                yield decode(line)


def from_json(kind: type[T], values: dict[str, Any]) -> T:
    """A dataclass from its JSON object: lists become tuples again, and former names are understood.

    Fields that this version does not have are left out.
    """
    names = {field.name for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    found = {}
    for written, value in values.items():
        name = FORMER_NAMES.get(written, written)
        if name in names:
            found[name] = tuple(value) if isinstance(value, list) else value
    return kind(**found)


def write_json(path: Path, value: Any) -> None:
    """Writes a dataclass as JSON, whole or not at all: a reader never sees half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:  # a summary counts as the end of a run: its checkpoints are removed behind it
        file.write((json.dumps(_plain(value), indent=2, allow_nan=False) + "\n").encode())


def write_failure(folder: Path, rank: int, error: BaseException) -> None:
    """Writes down why a rank ends: at once, before its process ends and the others fail for want of it."""
    failure = Failure(
        rank=rank,
        host=socket.gethostname(),
        time_s=time.time(),
        error=type(error).__name__,
        message=str(error),
        traceback="".join(traceback.format_exception(error)),
        user_error=isinstance(error, UserError),
    )
    try:
        write_json(folder / failure_name(rank), failure)
    except OSError as unwritten:
        error.add_note(f"and its record could not be written: {unwritten}")
