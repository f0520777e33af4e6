"""Reads the records of one run from its folder: the summary, the failures, the last step."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from disttrain.records.record_files import FAILURE_GLOB, SUMMARY_NAME, from_json, metrics_name, summary_from_json
from disttrain.records.record_types import ExchangeRecord, StepRecord
from disttrain.records.summary_types import Failure, Summary

# The number of bytes at the end of a file that are searched for a step, one size after the other.
_TAIL_SIZES_BYTES = (2**12, 2**16, 2**20, 2**24)
# A checkpoint record has a step too, but a checkpoint is written during the loop, and its step is an earlier one.
_KINDS_WITH_LAST_STEP = {StepRecord.kind, ExchangeRecord.kind}


@dataclass(frozen=True)
class RunRecords:
    """The records of one run.

    Attributes:
        summary: The summary of a finished run.
        failures: The failures of ranks, earliest first.
        last_step: The last step that rank 0 has written; None with a summary, or without any records.
    """

    summary: Summary | None = None
    failures: tuple[Failure, ...] = ()
    last_step: int | None = None


def read_run(run_dir: Path) -> RunRecords:
    """The summary and the failures in a run's folder; without a summary, the last step too."""
    failures = [from_json(Failure, _read_json(path)) for path in run_dir.glob(FAILURE_GLOB)]
    ordered = tuple(sorted(failures, key=lambda failure: failure.time_s))
    summary_path = run_dir / SUMMARY_NAME
    if summary_path.exists():
        return RunRecords(summary_from_json(_read_json(summary_path)), ordered)
    return RunRecords(None, ordered, _last_step(run_dir / metrics_name(0)))


def _last_step(path: Path) -> int | None:
    """The last optimizer step in a file of records, read from the end because the file of a long run is large.

    The first tail is long enough, unless the step is followed by an exchange of many buckets or by much telemetry.
    """
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            for tail in _TAIL_SIZES_BYTES:
                file.seek(max(0, size - tail))
                step = _last_step_in(file.read())
                if step is not None or tail >= size:
                    break
    except FileNotFoundError:
        return None
    return step or 0


def _last_step_in(tail: bytes) -> int | None:
    for line in reversed(tail.splitlines()):
        try:
            record = json.loads(line)
        except ValueError:
            continue  # truncated by the tail, or still being written
        if record["kind"] in _KINDS_WITH_LAST_STEP:
            return int(record["step"])
    return None


def _read_json(path: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return values
