"""Reads the records of one run from its folder: the summary, the failures, the last step."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from disttrain.records.json_values import DamagedFile, UnreadableFile, parse_object
from disttrain.records.record_files import metrics_name, read_failure, read_run_info, read_summary
from disttrain.records.record_types import ExchangeRecord, StepRecord
from disttrain.records.summary_types import Failure, Summary

# The number of bytes at the end of a file that are searched for a step, one size after the other.
_TAIL_SIZES_BYTES = (2**12, 2**16, 2**20, 2**24)
# A checkpoint record has a step too, but a checkpoint is written during the loop, and its step is an earlier one.
_KINDS_WITH_LAST_STEP = (StepRecord.kind, ExchangeRecord.kind)
_FAILURE_NAME = re.compile(r"failure-rank\d+\.json")


@dataclass(frozen=True)
class RunRecords:
    """The records of one run.

    Attributes:
        summary: The summary of a finished run.
        failures: The failures of ranks, earliest first.
        last_step: The last step that rank 0 has written; None with a summary, or without any records.
        damage: For each file that cannot be used, what is wrong with it.
    """

    summary: Summary | None = None
    failures: tuple[Failure, ...] = ()
    last_step: int | None = None
    damage: tuple[str, ...] = ()


def read_run(run_dir: Path) -> RunRecords:
    """The summary and the failures in a run's folder; without a summary, the last step too.

    A file that disappears during the call is absent. A damaged file affects this run only.
    """
    damage: list[str] = []
    failures: list[Failure] = []
    for path in _failure_files(run_dir):
        with _noting(damage):
            if failure := read_failure(path):
                failures.append(failure)
    summary = None
    with _noting(damage):
        summary = read_summary(run_dir)
    with _noting(damage), contextlib.suppress(UnreadableFile):  # results do not need it, and only its owner may read it
        read_run_info(run_dir)
    last_step = None
    if summary is None:
        with _noting(damage):
            last_step = _last_step(run_dir / metrics_name(0))
    ordered = tuple(sorted(failures, key=lambda failure: failure.time_s))
    return RunRecords(summary, ordered, last_step, tuple(damage))


@contextlib.contextmanager
def _noting(damage: list[str]) -> Iterator[None]:
    """Adds the damage that is found in the block to a list."""
    try:
        yield
    except DamagedFile as error:
        damage.append(error.message)


def _failure_files(run_dir: Path) -> list[Path]:
    """The failure files in a run's folder, by rank. A folder that has disappeared has none."""
    try:
        names = os.listdir(run_dir)
    except OSError:
        return []
    return [run_dir / name for name in sorted(names) if _FAILURE_NAME.fullmatch(name)]


def _last_step(path: Path) -> int | None:
    """The last optimizer step in a file of records, read from the end because the file of a long run is large.

    The first tail is long enough, unless the step is followed by an exchange of many buckets or by much telemetry.

    Raises:
        DamagedFile: The file cannot be read.
    """
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            for tail in _TAIL_SIZES_BYTES:
                file.seek(max(0, size - tail))
                step = _last_step_in(file.read())
                if step is not None or tail >= size:
                    break
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise UnreadableFile(f"{path.name} cannot be read: {error.strerror}") from None
    return step or 0


def _last_step_in(tail: bytes) -> int | None:
    for line in reversed(tail.splitlines()):
        try:
            record = parse_object(line)
        except ValueError:
            continue  # truncated by the tail, still being written, or damaged
        step = record.get("step")
        if record.get("kind") in _KINDS_WITH_LAST_STEP and isinstance(step, int):
            return step
    return None
