"""Readers and writers of record files: JSON lines that a rank appends, and JSON objects that are written atomically."""

from __future__ import annotations

import dataclasses
import os
import socket
import time
import traceback
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from disttrain.errors import UserError, shorten
from disttrain.records.atomic_write import atomic_write
from disttrain.records.json_values import (
    check_fields,
    damaged,
    parse_object,
    read_object,
    to_json,
    type_check,
)
from disttrain.records.lifecycle.hang_types import HangPosition
from disttrain.records.record_types import KINDS, Record
from disttrain.records.summary_types import SUMMARY_FIGURES, Failure, RunInfo, Stage, Summary

T = TypeVar("T")

# Fields that an earlier release wrote under another name. Records and summaries with the old names can still be read.
FORMER_NAMES = {
    "exposed_ms": "exposed_comm_ms",
    "exposed_p95_ms": "exposed_comm_p95_ms",
    "exposed_min_ms": "exposed_comm_min_ms",
    "hidden_ms": "overlapped_comm_ms",
    "hidden_p95_ms": "overlapped_comm_p95_ms",
    "hidden_min_ms": "overlapped_comm_min_ms",
}

# Made once: a sweep has thousands of summaries, each with a hundred figures.
_SUMMARY_CHECKS = {name: type_check(figure.type) for name, figure in SUMMARY_FIGURES.items()}

SUMMARY_NAME = "summary.json"
RUN_NAME = "run.json"
STAGE_NAME = "stage.json"
CHECKPOINTS_NAME = "checkpoints"
METRICS_GLOB = "metrics-rank*.jsonl"
FAILURE_GLOB = "failure-rank*.json"


def metrics_name(rank: int) -> str:
    """The file name of one rank's records.

    Example:
        >>> metrics_name(3)
        'metrics-rank00003.jsonl'
    """
    return f"metrics-rank{rank:05d}.jsonl"


def failure_name(rank: int) -> str:
    """The file name of one rank's failure."""
    return f"failure-rank{rank:05d}.json"


@dataclass(frozen=True)
class RecordPosition:
    """A position in a rank's records file: the number of bytes before it and their checksum."""

    size_bytes: int = 0
    crc32: int = 0


def is_intact(path: Path, position: RecordPosition) -> bool:
    """Whether the bytes of a file up to a position match the checksum."""
    if position.size_bytes == 0:
        return True
    try:
        with path.open("rb") as file:
            return zlib.crc32(file.read(position.size_bytes)) == position.crc32
    except OSError:
        return False


def records_after(path: Path, position: RecordPosition) -> Iterator[Record]:
    """The records after a position, up to the first that is incomplete or from an unknown version."""
    if not path.exists():
        return
    with path.open("rb") as file:
        file.seek(position.size_bytes)
        for line in file:
            try:
                yield decode(line)
            except ValueError:
                return


class RecordWriter:
    """Appends records to one rank's file, one JSON object per line.

    A flush for every step would cost 6 % of a 12 ms step. The training loop therefore passes many steps together.

    Args:
        path: The file.
        position: The end of the part of an earlier attempt's records to continue from: the steps before its checkpoint.
    """

    def __init__(self, path: Path, position: RecordPosition = RecordPosition()) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        # A new file: an older attempt that is still alive keeps writing to its open file, which then has no name.
        with atomic_write(path) as file:
            if position.size_bytes:
                with path.open("rb") as earlier:
                    file.write(earlier.read(position.size_bytes))
        self._file = path.open("ab")
        self._written = position

    def write(self, records: Sequence[Record]) -> None:
        """Appends the records and flushes them to the operating system."""
        lines = "".join(encode(record) + "\n" for record in records).encode()
        self._file.write(lines)
        self._file.flush()
        before = self._written
        self._written = RecordPosition(before.size_bytes + len(lines), zlib.crc32(lines, before.crc32))

    def sync(self) -> RecordPosition:
        """Waits until all records are on disk, before a checkpoint refers to them.

        Returns:
            The end of the records.
        """
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
    """One line of JSON, with the kind as its first key. The loss of a run that diverged is null."""
    return to_json({"kind": record.kind, **dataclasses.asdict(record)})


def decode(line: bytes | str) -> Record:
    """The record of one line, without fields that only a newer version has.

    Raises:
        ValueError: The line is not a record, or its kind is unknown. The message is the reason, in one line.
    """
    values = parse_object(line)
    kind = KINDS.get(str(values.pop("kind", "")))
    if kind is None:
        raise ValueError(f"it is not a record: {shorten(repr(line))}")
    return from_json(kind, values)


def read_records(path: Path) -> Iterator[Record]:
    """The records of one file, oldest first; an incomplete last line, which is still being written, is skipped.

    Raises:
        OSError: The file cannot be read.
        DamagedFile: A line is not a record.
    """
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                return
            try:
                record = decode(line)
            except ValueError as error:
                raise damaged(path, f"line {number}: {error}") from None
            yield record


def from_json(kind: type[T], values: Mapping[str, Any]) -> T:
    """A dataclass from its JSON object.

    Lists become tuples, former names become current names, and fields that this version does not have are left out.

    Raises:
        ValueError: A field is missing or has a wrong type. The message is the reason, in one line.
    """
    names = {field.name for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    renamed = {FORMER_NAMES.get(name, name): _without_list(value) for name, value in values.items()}
    known = {name: value for name, value in renamed.items() if name in names}
    check_fields(kind, known)
    return kind(**known)


def summary_from_json(values: Mapping[str, Any]) -> Summary:
    """A summary from its JSON object, with every figure of this version. A figure that is not in the object is None.

    Raises:
        ValueError: A figure has a wrong type, or the number of steps, which every release wrote, is missing. The
            message is the reason, in one line.
    """
    summary: Summary = dict.fromkeys(SUMMARY_FIGURES)
    for former_name, value in values.items():
        name = FORMER_NAMES.get(former_name, former_name)
        if value is None or name not in summary:
            continue
        summary[name] = _without_list(value)
        if not _SUMMARY_CHECKS[name](summary[name]):
            raise ValueError(f"{name} is {shorten(repr(summary[name]))}")
    if summary["steps"] is None:
        raise ValueError("it has no 'steps'")
    return summary


def read_summary(folder: Path) -> Summary | None:
    """The summary in a run's folder; None if there is none.

    Raises:
        DamagedFile: The file cannot be used.
    """
    return read_as(folder / SUMMARY_NAME, summary_from_json)


def read_failure(path: Path) -> Failure | None:
    """The failure in a file, and its errors as of `read_summary`."""
    return read_as(path, lambda values: from_json(Failure, values))


def read_hang_position(path: Path) -> HangPosition | None:
    """Where a rank was when a step did not end, and its errors as of `read_summary`."""
    return read_as(path, lambda values: from_json(HangPosition, values))


def read_run_info(folder: Path) -> RunInfo | None:
    """The identity of the run in a folder, from its run.json, and its errors as of `read_summary`."""
    return read_as(folder / RUN_NAME, _run_info)


def read_stage(folder: Path) -> Stage | None:
    """What rank 0 of a run does, by its last stage.json, and the errors as of `read_summary`."""
    return read_as(folder / STAGE_NAME, lambda values: from_json(Stage, values))


def _run_info(values: Mapping[str, Any]) -> RunInfo:
    info = from_json(RunInfo, values)
    for name in ("nodes", "gpus_per_node", "world_size"):
        if getattr(info, name) < 1:
            raise ValueError(f"{name} is {getattr(info, name)}")
    return info


def read_as(path: Path, convert: Callable[[dict[str, Any]], T]) -> T | None:
    """What a function makes of the JSON object in a file; None if there is no file.

    Raises:
        DamagedFile: The file cannot be used, or the function raised a ValueError, whose message is the reason.
    """
    values = read_object(path)
    if values is None:
        return None
    try:
        return convert(values)
    except ValueError as error:
        raise damaged(path, error) from None


def _without_list(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(value)
    return value


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Writes a JSON object atomically: a reader never sees a partial file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = to_json(values, indent=2) + "\n"
    with atomic_write(path) as file:  # with fsync: a summary marks the end of a run, whose checkpoints are then removed
        file.write(text.encode())


def write_failure(folder: Path, rank: int, error: BaseException) -> None:
    """Writes the failure of a rank immediately, before its process ends and the other ranks fail because of that."""
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
        save_failure(folder, failure)
    except OSError as write_error:
        error.add_note(f"its record could not be written: {write_error}")


def save_failure(folder: Path, failure: Failure) -> None:
    """Writes a failure.

    Raises:
        OSError: The file cannot be written.
    """
    write_json(folder / failure_name(failure.rank), dataclasses.asdict(failure))
