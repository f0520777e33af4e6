"""Joins the three sources of a sweep: the jobs in the ledger, the accounting of their attempts, the runs' records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from jobs.planning.labels import Variation
from jobs.results.comparability import with_reasons
from jobs.results.failure_reason import explain
from jobs.results.result import Requested, Result, Scheduled
from jobs.results.run_records import RunRecords
from jobs.slurm.attempts import AccountingRow
from jobs.slurm.states import State
from jobs.storage.ledger import Job, Ledger


def join(
    planned: Sequence[Mapping[str, Any]],
    ledger: Ledger,
    attempts: Mapping[str, Sequence[AccountingRow]],
    records: Mapping[str, RunRecords],
    *,
    local: bool,
) -> tuple[Result, ...]:
    """One row for each planned run.

    Args:
        planned: The runs as `plan.run_json` wrote them.
        ledger: The submissions of the sweep.
        attempts: All known attempts by job id, oldest first.
        records: The records by run id; a run without records may be missing.
        local: Whether the sweep ran under the local executor: columns that only Slurm can fill then stay empty.
    """
    rows = []
    variation = Variation(planned)
    for run in planned:
        jobs = ledger.jobs.get(run["run_id"], ())
        attempts_by_job = [_attempts_of(job.job_id, attempts) for job in jobs]
        run_records = records.get(run["run_id"], RunRecords())
        scheduled = _scheduled(jobs, attempts_by_job, run_records, run["world_size"], local)
        rows.append(
            Result(
                requested=_requested(run, variation.label(run)),
                varied=variation.values(run),
                varied_texts=variation.texts(run),
                config=run["train"],
                scheduled=scheduled,
                figures=_measured(run_records, State(scheduled.state)),
            )
        )
    return with_reasons(_with_link_shares(rows))


def run_states(
    run_ids: Sequence[str], ledger: Ledger, attempts: Mapping[str, Sequence[AccountingRow]]
) -> dict[str, State]:
    """The state of each run.

    Args:
        run_ids: The ids of the runs.
        ledger: The submissions of the sweep.
        attempts: All known attempts by job id, oldest first.
    """
    states = {}
    for run_id in run_ids:
        jobs = ledger.jobs.get(run_id, ())
        states[run_id] = _state(jobs, _latest([_attempts_of(job.job_id, attempts) for job in jobs]))
    return states


def _with_link_shares(rows: Sequence[Result]) -> tuple[Result, ...]:
    """The rows, each with its bus bandwidth as a share of the link's, for the same allocation and backend."""
    limits: dict[tuple[str, Any], float] = {}
    for row in rows:
        if limit := row.figures.get("link_bus_gb_per_s"):
            limits[row.requested.allocation, row.figures["backend"]] = limit
    shared = []
    for row in rows:
        limit = limits.get((row.requested.allocation, row.figures.get("backend")))
        bandwidth = row.figures.get("bus_gb_per_s")
        if limit and bandwidth is not None:
            row = row.with_figures(link_share=bandwidth / limit)
        shared.append(row)
    return tuple(shared)


def _attempts_of(job_id: str, attempts: Mapping[str, Sequence[AccountingRow]]) -> tuple[AccountingRow, ...]:
    """The attempts of a job; for an array task without any, the attempts of its array that never started."""
    own_attempts = tuple(attempts.get(job_id, ()))
    array, _, task = job_id.partition("_")
    if own_attempts or not task:
        return own_attempts
    # If an array is cancelled within a second or two of sbatch, sacct lists only the array's id, and no tasks.
    return tuple(attempt for attempt in attempts.get(array, ()) if attempt.start_s is None)


def _latest(attempts_by_job: Sequence[Sequence[AccountingRow]]) -> AccountingRow | None:
    """The latest attempt of the latest job, if the accounting has it."""
    if attempts_by_job and attempts_by_job[-1]:
        return attempts_by_job[-1][-1]
    return None


def _state(jobs: Sequence[Job], latest: AccountingRow | None) -> State:
    """The state of a run from its jobs and its latest attempt."""
    if latest is None and not jobs:
        return State.NOT_SUBMITTED
    if latest is None:
        return State.PENDING  # sacct lists a job only some seconds after sbatch
    if latest.state is State.FAILED and latest.out_of_memory:
        return State.OUT_OF_MEMORY  # from Slurm 22.05.4 on, only the step has this state
    return latest.state


def _requested(run: Mapping[str, Any], label: str) -> Requested:
    """The part of a row that the plan decides."""
    return Requested(
        run_id=run["run_id"],
        label=label,
        allocation=run["allocation"],
        world_size=run["world_size"],
        dropped=run.get("dropped", False),
    )


def _scheduled(
    jobs: Sequence[Job],
    attempts_by_job: Sequence[Sequence[AccountingRow]],
    records: RunRecords,
    planned_gpus: int,
    local: bool,
) -> Scheduled:
    """The part of a row that the scheduler reports; under the local executor only the state and the times."""
    latest = _latest(attempts_by_job)
    state = _state(jobs, latest)
    columns: dict[str, Any] = {"state": state.value}
    if reason := _reason(state, latest, records, planned_gpus):
        columns["reason"] = reason
    if latest is not None:
        columns["elapsed_s"] = latest.elapsed_s
        columns["submit_time"] = _iso(latest.submit_s)
        columns["start_time"] = _iso(latest.start_s)
        columns["end_time"] = _iso(latest.end_s)
    if latest is not None and state.is_finished:
        columns["exit_code"] = latest.exit_code
    if local:
        return Scheduled(**columns)
    attempts = [attempt for job_attempts in attempts_by_job for attempt in job_attempts]
    columns["attempts"] = len(attempts)
    if jobs:
        columns["job_id"] = jobs[-1].job_id
    if latest is not None:
        columns |= {name: getattr(latest, name) for name in ("queue_wait_s", "node_list", "max_rss_bytes")}
        columns |= _gpu_columns(attempts, planned_gpus)
    return Scheduled(**columns)


def _reason(state: State, latest: AccountingRow | None, records: RunRecords, world_size: int) -> str | None:
    """Why a run did not complete, and which of its files are damaged; None for a run without either."""
    reasons = list(records.damage)
    if state.is_finished and not state.is_success:
        explained = explain(state, latest, records.failures, world_size)
        # A damaged failure file says that a rank did report an error.
        if state is not State.FAILED or records.failures or not any(text.startswith("failure-") for text in reasons):
            reasons.insert(0, explained)
    return "; ".join(reasons) or None


def _gpu_columns(attempts: Sequence[AccountingRow], planned_gpus: int) -> dict[str, Any]:
    """The GPU-hours of all attempts, and whether sacct or the plan gave the number of GPUs."""
    source = "sacct"
    if not all(attempt.counts_gpus for attempt in attempts):
        source = "plan"
    hours = sum(_gpu_hours(attempt, planned_gpus) for attempt in attempts)
    return {"gpu_hours": round(hours, 6), "gpu_hours_from": source}


def _gpu_hours(attempt: AccountingRow, planned_gpus: int) -> float:
    """GPU-hours of an attempt; by the plan's GPUs if the site does not account them (AccountingStorageTRES)."""
    if attempt.gpu_hours is not None:
        return attempt.gpu_hours
    return planned_gpus * (attempt.elapsed_s or 0) / 3600


def _measured(records: RunRecords, state: State) -> dict[str, Any]:
    """The part of a row that the run measured: its steps so far, and all figures after a successful end."""
    if records.summary is None:
        return {"steps": records.last_step}
    if not state.is_success:
        return {"steps": records.summary["steps"]}
    return records.summary


def _iso(time_s: int | None) -> str | None:
    if time_s is None:
        return None
    try:
        return datetime.fromtimestamp(time_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    except (ValueError, OverflowError, OSError):  # a damaged row of the accounting: no such year
        return None
