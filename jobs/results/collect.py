"""Joins the three sources of a sweep: the jobs in the ledger, the accounting of their attempts, the runs' records."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from disttrain.config.command.command_config import is_command
from disttrain.records.lifecycle.attempt_log import Attempt
from jobs.planning.labels import Variation
from jobs.results.comparability import with_reasons
from jobs.results.failures.failure_kind import Kind
from jobs.results.failures.failure_reason import explain, needs_log
from jobs.results.failures.job_log import LogEnd, Tasks, parse_log_end
from jobs.results.result import Requested, Result, Scheduled
from jobs.results.run_attempts import gpu_hours, has_started, run_attempts, wasted_hours
from jobs.results.run_records import RunRecords
from jobs.results.scaling import with_scaling
from jobs.schedulers.conclude import Conclusion
from jobs.slurm.attempts import AccountingRow, attempts_of
from jobs.slurm.states import State
from jobs.storage.ledger import Job, Ledger


def join(
    planned: Sequence[Mapping[str, Any]],
    ledger: Ledger,
    attempts: Mapping[str, Sequence[AccountingRow]],
    records: Mapping[str, RunRecords],
    conclusions: Mapping[str, Conclusion],
    *,
    has_accounting: bool,
    read_log: Callable[[str], str],
    read_attempts: Callable[[str], Sequence[Attempt]] = lambda _: (),
) -> tuple[Result, ...]:
    """One row for each planned run.

    Args:
        planned: The runs as `plan.run_json` wrote them.
        ledger: The submissions of the sweep.
        attempts: All known attempts by job id, oldest first.
        records: The records by run id; a run without records may be missing.
        conclusions: The state of each run by its id.
        has_accounting: Whether the scheduler accounts jobs; else the columns that only Slurm can fill stay empty.
        read_log: A function that returns the end of a job's log. It is only called for failed runs of which no rank
            has reported the reason.
        read_attempts: A function that returns what a run has logged of its attempts. It is only called for runs with
            several of them.
    """
    rows = []
    variation = Variation(planned)
    for run in planned:
        jobs = ledger.jobs.get(run["run_id"], ())
        conclusion = conclusions[run["run_id"]]
        of_jobs = all_attempts(jobs, attempts, conclusion)
        run_records = records.get(run["run_id"], RunRecords())
        kind, reason = _reason(conclusion, run_records, Tasks.of(run), read_log)
        scheduled = _scheduled(conclusion, jobs, of_jobs, kind, reason, run["world_size"], has_accounting)
        if scheduled.gpu_hours is not None:
            logged = read_attempts(run["run_id"]) if len([*filter(has_started, of_jobs)]) > 1 else ()
            wasted = wasted_hours(run_attempts(of_jobs, logged, conclusion.state, run["world_size"]))
            scheduled = replace(scheduled, gpu_hours_wasted=wasted)
        rows.append(
            Result(
                requested=_requested(run, variation.label(run), run_records.code),
                varied=variation.values(run),
                varied_texts=variation.texts(run),
                config=run["train"],
                scheduled=scheduled,
                figures=_measured(run_records, State(scheduled.state)),
                is_command=is_command(run),
            )
        )
    return with_scaling(with_reasons(_with_link_shares(rows)))


def all_attempts(
    jobs: Sequence[Job], attempts: Mapping[str, Sequence[AccountingRow]], conclusion: Conclusion
) -> list[AccountingRow]:
    """The attempts of all jobs of a run; the latest may be known from its end alone.

    Args:
        jobs: The jobs of the run, the latest last.
        attempts: All known attempts by job id, oldest first.
        conclusion: The state of the run.
    """
    of_jobs = [attempt for job in jobs for attempt in attempts_of(job.job_id, attempts)]
    if conclusion.attempt is not None and conclusion.attempt.key not in {attempt.key for attempt in of_jobs}:
        of_jobs.append(conclusion.attempt)
    return of_jobs


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


def _requested(run: Mapping[str, Any], label: str, code: str | None) -> Requested:
    """The part of a row that the plan and the submission decide."""
    return Requested(
        run_id=run["run_id"],
        label=label,
        allocation=run["allocation"],
        world_size=run["world_size"],
        dropped=run.get("dropped", False),
        code=code,
    )


def _scheduled(
    conclusion: Conclusion,
    jobs: Sequence[Job],
    attempts: Sequence[AccountingRow],
    kind: Kind | None,
    reason: str | None,
    planned_gpus: int,
    has_accounting: bool,
) -> Scheduled:
    """The part of a row that the scheduler reports; without accounting only the state and the times."""
    state, latest = conclusion.state, conclusion.attempt
    columns: dict[str, Any] = {"state": state.value, "state_source": conclusion.source}
    if kind is not None:
        columns["reason_kind"] = kind
    if reason is not None:
        columns["reason"] = reason
    if latest is not None:
        columns["elapsed_s"] = latest.elapsed_s
        columns["submit_time"] = _iso(latest.submit_s)
        columns["start_time"] = _iso(latest.start_s)
        columns["end_time"] = _iso(latest.end_s)
    if latest is not None and state.is_finished:
        columns["exit_code"] = latest.exit_code
    if not has_accounting:
        return Scheduled(**columns)
    columns["attempts"] = len(attempts)
    if jobs:
        columns["job_id"] = jobs[-1].job_id
    if latest is not None:
        columns |= {name: getattr(latest, name) for name in ("queue_wait_s", "node_list", "max_rss_bytes")}
        columns |= _gpu_columns(attempts, planned_gpus)
    return Scheduled(**columns)


def _reason(
    conclusion: Conclusion, records: RunRecords, tasks: Tasks, read_log: Callable[[str], str]
) -> tuple[Kind | None, str | None]:
    """The kind of the reason why a run did not complete, and why it waits or did not complete.

    The second also says which of its files are damaged. Both are None if there is nothing to say.
    """
    state, reasons = conclusion.state, list(records.damage)
    kind: Kind | None = None
    if state.is_finished and not state.is_success:
        log_end = LogEnd()
        if conclusion.attempt is not None and needs_log(state, records.failures, tasks.count):
            log_end = parse_log_end(read_log(conclusion.attempt.job_id), tasks)
        explained = explain(state, conclusion.attempt, records, tasks, log_end)
        kind = explained.kind
        # A damaged failure file says that a rank did report an error.
        if state is not State.FAILED or records.failures or not any(text.startswith("failure-") for text in reasons):
            reasons.insert(0, conclusion.reason or explained.text)
    elif conclusion.reason is not None:
        reasons.insert(0, conclusion.reason)
    return kind, "; ".join(reasons) or None


def _gpu_columns(attempts: Sequence[AccountingRow], planned_gpus: int) -> dict[str, Any]:
    """The GPU-hours of all attempts, and whether sacct or the plan gave the number of GPUs."""
    source = "sacct"
    if not all(attempt.counts_gpus for attempt in attempts):
        source = "plan"
    hours = sum(gpu_hours(attempt, planned_gpus) for attempt in attempts)
    return {"gpu_hours": round(hours, 6), "gpu_hours_from": source}


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
        return datetime.fromtimestamp(time_s, UTC).isoformat().removesuffix("+00:00") + "Z"  # strftime is slow
    except (ValueError, OverflowError, OSError):  # a damaged row of the accounting: no such year
        return None
