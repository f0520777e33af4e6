"""What the folder of a run shows of its life, by the names and times of its files. No file is read."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from disttrain.records.record_files import CHECKPOINTS_NAME, SUMMARY_NAME, metrics_name
from disttrain.records.script_metrics import metrics_files

_FAILURE_NAME = re.compile(r"failure-rank\d+\.json")


@dataclass(frozen=True)
class RunFacts:
    """What the folder of a run shows of the life of its latest job.

    Attributes:
        has_summary: Whether the run has a summary: a submission removes the one of an earlier job.
        failed_s: The time at which a rank last reported a failure, in seconds since 1970; None if none did.
        wrote_s: The time at which rank 0 last wrote a record, or its script a metric; None if neither did.
    """

    has_summary: bool = False
    failed_s: float | None = None
    wrote_s: float | None = None


def read_facts(run_dir: Path) -> RunFacts:
    """What a run's folder shows, without reading the records."""
    failed_s = max(filter(None, map(_written_s, failure_files(run_dir))), default=None)
    written = (run_dir / metrics_name(0), *metrics_files(run_dir).get(0, ()))
    return RunFacts(has_summary(run_dir), failed_s, max(filter(None, map(_written_s, written)), default=None))


def has_summary(run_dir: Path) -> bool:
    """Whether a run has a summary; also if a folder cannot be read: a run is not repeated because a disk is away."""
    try:
        (run_dir / SUMMARY_NAME).stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True
    return True


def has_checkpoint(run_dir: Path) -> bool:
    """Whether a run would resume: a checkpoint is complete with its JSON file."""
    return any((run_dir / CHECKPOINTS_NAME).glob("*.json"))


def _written_s(path: Path) -> float | None:
    try:
        return path.stat().st_mtime
    except OSError:
        return None


def failure_files(run_dir: Path) -> list[Path]:
    """The failure files in a run's folder, by rank. A folder that has disappeared has none."""
    try:
        names = os.listdir(run_dir)
    except OSError:
        return []
    return [run_dir / name for name in sorted(names) if _FAILURE_NAME.fullmatch(name)]
