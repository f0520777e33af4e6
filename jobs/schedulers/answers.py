"""What a scheduler has answered about the jobs of a sweep, now and before: accounting.jsonl keeps every answer."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from disttrain.records.atomic_write import write_text
from disttrain.records.json_values import to_json
from jobs.slurm.attempts import AccountingRow, merge_history
from jobs.slurm.squeue import QueuedJob
from jobs.storage.ledger import Ledger, append_lines, read_numbered_lines
from jobs.storage.sweep_folder import SweepFolder


@dataclass(frozen=True)
class Question:
    """What a scheduler is asked about.

    Attributes:
        folder: The folder of the sweep.
        job_name: The name of its jobs.
        ledger: Its ledger.
        run_ids: The runs whose states are needed; plan.json need not have them.
        saved: The rows of earlier answers.
    """

    folder: SweepFolder
    job_name: str
    ledger: Ledger
    run_ids: Sequence[str]
    saved: Sequence[AccountingRow]


@dataclass(frozen=True)
class Answers:
    """What a scheduler has answered.

    Attributes:
        attempts: The attempts of each job by its id, the latest last.
        notices: Notices for the user.
        queue: What squeue lists, by job id; None if it was not asked, or did not answer.
        here: The name of the cluster that was asked; None if that is not known.
        is_current: Whether the accounting has answered; else the attempts are from an earlier answer.
        is_saved: Whether that answer could be saved; else a notice says why not.
        asked_s: The time of the question, in seconds since 1970, if it was asked earlier; None if it was asked now.
    """

    attempts: Mapping[str, tuple[AccountingRow, ...]]
    notices: tuple[str, ...] = ()
    queue: Mapping[str, QueuedJob] | None = None
    here: str | None = None
    is_current: bool = True
    is_saved: bool = True
    asked_s: float | None = None


def read_saved_rows(path: Path) -> tuple[tuple[AccountingRow, ...], list[int]]:
    """The rows of accounting.jsonl, and the numbers of its damaged lines."""
    rows, damaged = [], []
    for number, values in read_numbered_lines(path):
        try:
            if values is None:
                raise ValueError("it is no JSON object")
            rows.append(AccountingRow.from_json(values))
        except ValueError:
            damaged.append(number)
    return merge_history((), rows), damaged


def save_rows(folder: SweepFolder, saved: Sequence[AccountingRow], merged: Sequence[AccountingRow]) -> tuple[str, ...]:
    """Saves what sacct answered. A full disk or a read-only folder gives a notice: the states only need to be read."""
    # Only new rows: the file grows with the events, not with the number of queries during a run.
    known = {_without_elapsed(row) for row in saved}
    new = [row for row in merged if _without_elapsed(row) not in known]
    try:
        if new:
            append_lines(folder.accounting_file, [to_json(row.to_json()) for row in new])
        write_text(folder.query_time_file, f"{time.time():.0f}\n")
    except OSError as error:
        return (f"what was seen could not be saved: {error.filename}: {error.strerror}",)
    return ()


def _without_elapsed(row: AccountingRow) -> AccountingRow:
    """The row; of an unfinished job without elapsed_s, which changes with every query."""
    if row.state.is_finished:
        return row
    return replace(row, elapsed_s=None)


def age_text(age_s: float) -> str:
    """An age in its largest unit.

    Example:
        >>> age_text(5), age_text(150), age_text(7300), age_text(200000)
        ('5 s', '2 min', '2 h', '2 days')
    """
    for unit, seconds in (("days", 86400), ("h", 3600), ("min", 60)):
        if age_s >= (2 * seconds if unit == "days" else seconds):
            return f"{age_s // seconds:.0f} {unit}"
    return f"{age_s:.0f} s"
