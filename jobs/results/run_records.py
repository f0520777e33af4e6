"""Reads the records of one run from its folder: the summary, the failures, the last step."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from disttrain.errors import shorten
from disttrain.records.file_tail import read_tails
from disttrain.records.json_values import DamagedFile, UnreadableFile, damaged, parse_object, type_check
from disttrain.records.lifecycle.attempt_log import checkpoint_step
from disttrain.records.record_files import metrics_name, read_failure, read_run_info, read_summary
from disttrain.records.record_types import ExchangeRecord, StepRecord
from disttrain.records.script_metrics import last_step as last_script_step
from disttrain.records.script_metrics import metrics_files
from disttrain.records.summary_types import Failure, Summary
from jobs.storage.run_facts import failure_files

# A checkpoint record has a step too, but a checkpoint is written during the loop, and its step is an earlier one.
_KINDS_WITH_LAST_STEP = (StepRecord.kind, ExchangeRecord.kind)
_is_integer = type_check(int)


@dataclass(frozen=True)
class RunRecords:
    """The records of one run.

    Attributes:
        summary: The summary of a finished run.
        failures: The failures of ranks, earliest first.
        last_step: The last step that rank 0 has written, or that a script has logged; None with a summary, or without
            any records.
        saved_step: The step of the latest checkpoint; None with a summary, or without a checkpoint. The checkpoints of
            a script are its own.
        damage: For each file that cannot be used, what is wrong with it.
        code: The hash of the copy of the user's code; None if the run starts the files in place, or if only the owner
            may read its run.json.
    """

    summary: Summary | None = None
    failures: tuple[Failure, ...] = ()
    last_step: int | None = None
    saved_step: int | None = None
    damage: tuple[str, ...] = ()
    code: str | None = None


def is_complete(run_dir: Path) -> bool:
    """Whether a run's folder has a summary that can be read."""
    try:
        return read_summary(run_dir) is not None
    except DamagedFile:
        return False


def read_run(run_dir: Path) -> RunRecords:
    """The summary and the failures in a run's folder; without a summary, the last step too.

    A file that disappears during the call is absent. A damaged file affects this run only.
    """
    damage: list[str] = []
    failures: list[Failure] = []
    for path in failure_files(run_dir):
        with _noting(damage):
            if failure := read_failure(path):
                failures.append(failure)
    summary = None
    with _noting(damage):
        summary = read_summary(run_dir)
    code = None
    with _noting(damage), contextlib.suppress(UnreadableFile):  # results do not need it, and only its owner may read it
        if info := read_run_info(run_dir):
            code = info.code_hash
    last_step: int | None = None
    saved_step: int | None = None
    if summary is None and (scripts := metrics_files(run_dir)):
        steps = (step for rank in scripts if (step := last_script_step(run_dir, rank)) is not None)
        last_step = next(steps, 0)
    elif summary is None:
        saved_step = checkpoint_step(run_dir) or None
        path = run_dir / metrics_name(0)
        with _noting(damage):
            last_step, wrong = _last_step(path)
            if wrong:
                damage.append(damaged(path, wrong).message)
    ordered = tuple(sorted(failures, key=lambda failure: failure.time_s))
    return RunRecords(summary, ordered, last_step, saved_step, tuple(damage), code)


@contextlib.contextmanager
def _noting(damage: list[str]) -> Iterator[None]:
    """Adds the damage that is found in the block to a list."""
    try:
        yield
    except DamagedFile as error:
        damage.append(error.message)


def _last_step(path: Path) -> tuple[int | None, str | None]:
    """The last optimizer step in a file of records, and what is wrong with a line after it.

    The file is read from the end, because that of a long run is large. The first tail is long enough, unless the step
    is followed by an exchange of many buckets or by much telemetry.

    Raises:
        DamagedFile: The file cannot be read.
    """
    step: int | None = None
    wrong: str | None = None
    try:
        for lines in read_tails(path):
            step, wrong = _last_step_in(lines)
            if step is not None:
                break
    except (FileNotFoundError, NotADirectoryError):
        return None, None
    except OSError as error:
        raise UnreadableFile(f"{path.name} cannot be read: {error.strerror}") from None
    return step or 0, wrong


def _last_step_in(lines: Sequence[bytes]) -> tuple[int | None, str | None]:
    """The last step in some lines, of which the last has no line end, and what is wrong with a line after the step."""
    wrong = None
    for number, line in enumerate(reversed(lines)):
        if not line or (number == 0 and _may_be_incomplete(line)):
            continue
        try:
            step = _step_of(parse_object(line))
        except ValueError as error:
            wrong = str(error)
            continue
        if step is not None:
            return step, wrong
    return None, wrong


def _may_be_incomplete(line: bytes) -> bool:
    """Whether a last line without a line end is still being written: it is the start of an object in JSON's ASCII."""
    return line.startswith(b"{") and line.isascii() and line.decode().isprintable()


def _step_of(record: Mapping[str, Any]) -> int | None:
    """The step of a record; None if it has none, or not the last one.

    Raises:
        ValueError: It is not a record. The message is the reason, in one line.
    """
    if not isinstance(record.get("kind"), str):
        raise ValueError(f"it is not a record: {shorten(repr(record))}")
    if record["kind"] not in _KINDS_WITH_LAST_STEP:
        return None
    step: Any = record.get("step")
    if not _is_integer(step) or step < 1:
        raise ValueError(f"step is {shorten(repr(step))}")
    return int(step)
