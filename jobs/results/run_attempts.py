"""The attempts of one run: what Slurm accounts for each, which steps each did, and which of them were lost."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from disttrain.records.lifecycle.attempt_log import Attempt
from jobs.results.text_table import TextColumn, TextTable
from jobs.slurm.attempts import AccountingRow
from jobs.slurm.states import State

# How much the clock of a node may be before that of the controller.
_CLOCK_SLACK_S = 60


@dataclass(frozen=True)
class RunAttempt:
    """One attempt of a run.

    Attributes:
        row: What the accounting says of it.
        gpu_hours: Its GPU-hours.
        first_step: The number of steps that were done before it; None if it has logged no start.
        last_step: The step after which it stopped and saved; None if it did not, or if that is not known.
        lost_steps: The number of its steps that a later attempt did again; None if that is not known.
        wasted_share: The share of its GPU-hours that gave no step of the result; None if that is not known.
    """

    row: AccountingRow
    gpu_hours: float
    first_step: int | None = None
    last_step: int | None = None
    lost_steps: int | None = None
    wasted_share: float | None = 0.0


def gpu_hours(attempt: AccountingRow, planned_gpus: int) -> float:
    """GPU-hours of an attempt; by the plan's GPUs if the site does not account them (AccountingStorageTRES)."""
    if attempt.gpu_hours is not None:
        return attempt.gpu_hours
    return planned_gpus * (attempt.elapsed_s or 0) / 3600


def has_started(row: AccountingRow) -> bool:
    """Whether the attempt has started: only then it has GPU-hours and steps."""
    return row.start_s is not None


def run_attempts(
    rows: Sequence[AccountingRow], logged: Sequence[Attempt], state: State, planned_gpus: int
) -> tuple[RunAttempt, ...]:
    """The attempts of a run over all its jobs, the earliest first.

    Args:
        rows: The attempts of all its jobs by the accounting.
        logged: The attempts that the run has logged since it was last sent with a new budget, the latest last.
        state: The state of the run.
        planned_gpus: The number of GPUs by the plan.
    """
    ordered = sorted(rows, key=lambda row: (row.submit_s or 0, row.start_s or 0))
    of_row = _logged_of(ordered, logged)
    followers = {earlier.start_s: later for earlier, later in pairwise(logged)}
    latest = next((row.key for row in reversed(ordered) if has_started(row)), None)
    attempts = []
    for row in ordered:
        log = of_row.get(row.key)
        follower = followers.get(log.start_s) if log else None
        share: float | None = 0.0
        if state.is_finished and not state.is_success:
            share = 1.0  # without a result, no step is in one
        elif has_started(row) and row.key != latest:
            share = _wasted_share(row, log, follower, logged)
        attempts.append(
            RunAttempt(
                row=row,
                gpu_hours=gpu_hours(row, planned_gpus),
                first_step=log.first_step if log else None,
                last_step=log.last_step if log else None,
                lost_steps=_lost_steps(log, follower) if log else None,
                wasted_share=share,
            )
        )
    return tuple(attempts)


def _logged_of(rows: Sequence[AccountingRow], logged: Sequence[Attempt]) -> dict[Any, Attempt]:
    """What each attempt has logged, by its key: of those of its job, the latest that began before the log."""
    found = {}
    for log in logged:
        began = [
            row
            for row in rows
            if log.job_id in (row.job_id, row.job_id_raw)
            and row.start_s is not None
            and row.start_s <= log.start_s + _CLOCK_SLACK_S
        ]
        if began:
            found[max(began, key=lambda row: row.start_s or 0).key] = log
    return found


def _lost_steps(log: Attempt, follower: Attempt | None) -> int | None:
    """The steps that the next attempt did again; None if it is not known how far this one came."""
    if follower is None:
        return 0
    if log.last_step is None:
        return None
    return max(0, log.last_step - max(follower.first_step, log.first_step))


def _wasted_share(
    row: AccountingRow, log: Attempt | None, follower: Attempt | None, logged: Sequence[Attempt]
) -> float | None:
    """The share of an attempt, before the latest one, that gave no step of the result; None if it is not known."""
    if log is None:
        # It ended before its first step if the log covers its time. An attempt that began from 0 used none before it.
        is_covered = bool(logged) and (logged[0].first_step == 0 or logged[0].start_s < (row.start_s or 0))
        return 1.0 if is_covered else None
    if follower is None or follower.first_step <= log.first_step:
        return None if follower is None else 1.0
    lost = _lost_steps(log, follower)
    if lost is None or log.last_step is None:
        return None
    return lost / (log.last_step - log.first_step)


def wasted_hours(attempts: Sequence[RunAttempt]) -> float | None:
    """The GPU-hours that gave no step of the result; None if that is not known of an attempt."""
    hours = 0.0
    for attempt in attempts:
        if attempt.wasted_share is None:
            return None
        hours += attempt.gpu_hours * attempt.wasted_share
    return round(hours, 6)


def attempts_json(attempts: Sequence[RunAttempt]) -> list[dict[str, Any]]:
    """One object for each attempt; an unknown value is None."""
    return [
        {
            "number": number,
            "job_id": attempt.row.job_id,
            "state": attempt.row.state_text,
            "submit_s": attempt.row.submit_s,
            "start_s": attempt.row.start_s,
            "queue_wait_s": attempt.row.queue_wait_s,
            "elapsed_s": attempt.row.elapsed_s,
            "node_list": attempt.row.node_list,
            "gpu_hours": round(attempt.gpu_hours, 6),
            "exit_code": attempt.row.exit_code,
            "reason": attempt.row.reason,
            "first_step": attempt.first_step,
            "last_step": attempt.last_step,
            "lost_steps": attempt.lost_steps,
        }
        for number, attempt in enumerate(attempts, start=1)
    ]


def attempts_table(attempts: Sequence[RunAttempt]) -> TextTable:
    """One row for each attempt, with the times in UTC; an unknown value is an empty cell."""
    rows = [
        {**row, "submit": _time(row["submit_s"]), "start": _time(row["start_s"])} for row in attempts_json(attempts)
    ]
    columns = []
    for name in _SHOWN:
        values = [row[name] for row in rows]
        cells = [_cell(value) for value in values]
        columns.append(TextColumn(name, cells, all(isinstance(value, int | float | None) for value in values)))
    return TextTable(columns, [""] * len(rows))


_SHOWN = (
    "number", "job_id", "state", "submit", "start", "queue_wait_s", "elapsed_s", "node_list", "gpu_hours", "exit_code",
    "reason", "first_step", "last_step", "lost_steps",
)  # fmt: skip


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _time(time_s: int | None) -> str | None:
    return None if time_s is None else time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(time_s))
