"""Joins the three sources of a sweep: the jobs in the ledger, the accounting of their attempts, the runs' records."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from disttrain.config.train_config import LINK
from disttrain.records.summary_types import Summary
from jobs.results.failure_reason import explain
from jobs.results.run_records import RunRecords
from jobs.slurm.attempts import AccountingRow
from jobs.slurm.states import JobPhase, State
from jobs.storage.ledger import Job, Ledger


@dataclass(frozen=True, kw_only=True)
class Result:
    """One run of a sweep: its config, its state, its measurements. The fields are the columns of every output.

    Unknown values are None. Under the local executor, all columns that only Slurm can fill are None.
    """

    run_id: str
    allocation: str
    model: str
    per_gpu_batch: int | None = None
    global_batch: int | None = None
    lr: float | None = None
    seed: int | None = None
    state: str
    exit_code: int | None = None
    reason: str | None = None  # why the run did not complete
    # From Slurm's accounting.
    job_id: str | None = None
    attempts: int | None = None  # the number of attempts of all its jobs
    submit_time: str | None = None  # ISO 8601, UTC
    start_time: str | None = None
    end_time: str | None = None
    queue_wait_s: int | None = None  # start - submit of the latest attempt
    elapsed_s: int | None = None  # the seconds of the latest attempt
    gpu_hours: float | None = None  # the GPU-hours of all attempts
    gpu_hours_from: str | None = None  # sacct; plan if the site's accounting does not count GPUs
    node_list: str | None = None
    max_rss_bytes: int | None = None  # the largest task of the largest step
    # From the run's own records.
    world_size: int
    backend: str | None = None
    device_name: str | None = None
    comparable: bool | None = None  # False if ranks shared a GPU, or nodes were folded onto one host
    steps: int | None = None  # the number of steps so far
    train_s: float | None = None
    samples_per_s: float | None = None
    samples_per_s_per_gpu: float | None = None
    train_loss: float | None = None
    eval_loss: float | None = None
    eval_accuracy: float | None = None
    data_ms: float | None = None
    forward_ms: float | None = None
    backward_ms: float | None = None
    optimizer_ms: float | None = None
    step_ms: float | None = None
    backward_compute_ms: float | None = None
    exposed_comm_ms: float | None = None
    overlapped_comm_ms: float | None = None
    data_p95_ms: float | None = None  # 95th percentiles and minima are over the measured steps of rank 0
    data_min_ms: float | None = None
    forward_p95_ms: float | None = None
    forward_min_ms: float | None = None
    backward_p95_ms: float | None = None
    backward_min_ms: float | None = None
    backward_compute_p95_ms: float | None = None
    backward_compute_min_ms: float | None = None
    exposed_comm_p95_ms: float | None = None
    exposed_comm_min_ms: float | None = None
    overlapped_comm_p95_ms: float | None = None
    overlapped_comm_min_ms: float | None = None
    optimizer_p95_ms: float | None = None
    optimizer_min_ms: float | None = None
    step_p95_ms: float | None = None
    step_min_ms: float | None = None
    bucket_count: int | None = None
    exchange_ms: float | None = None
    bus_gb_per_s: float | None = None
    link_share: float | None = None  # bus_gb_per_s / link_bus_gb_per_s of the link run of the same allocation
    check_exposed_ms: float | None = None  # this and the next four are from rank 0's cross-check
    no_sync_exposed_ms: float | None = None
    no_sync_difference: float | None = None
    no_sync_is_check: bool | None = None  # False if no_sync_exposed_ms is only a bound
    ddp_exposed_ms: float | None = None
    slowest_rank: int | None = None
    slowest_host: str | None = None
    slowest_ratio: float | None = None
    link_latency_ms: float | None = None  # this and link_bus_gb_per_s are from runs of model link
    link_bus_gb_per_s: float | None = None
    gpu_util_percent: float | None = None  # telemetry of rank 0; only the energy is for all boards
    gpu_power_w: float | None = None
    gpu_memory_peak_mib: float | None = None
    gpu_temperature_peak_c: float | None = None
    gpu_throttle: str | None = None  # all reasons; "none" if throttling was measured and never occurred
    gpu_energy_j: float | None = None
    gpu_energy_source: str | None = None
    process_cpu_percent: float | None = None
    process_memory_peak_mib: float | None = None
    hosts: str | None = None  # the host of each rank, in the order of the ranks

    @property
    def phase(self) -> JobPhase:
        """The phase of the run's state."""
        return State(self.state).phase


COLUMNS = tuple(field.name for field in dataclasses.fields(Result))
# The columns that a summary has under the same name and in the same form, and that only a successful run fills.
_SUMMARY_COLUMNS = {field.name for field in dataclasses.fields(Summary)} & set(COLUMNS) - {
    "world_size", "steps", "hosts", "gpu_throttle"
}  # fmt: skip


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
    for run in planned:
        jobs = ledger.jobs.get(run["run_id"], ())
        attempts_by_job = [_attempts_of(job.job_id, attempts) for job in jobs]
        rows.append(_join_run(run, jobs, attempts_by_job, records.get(run["run_id"], RunRecords()), local))
    return _with_link_shares(rows)


def _with_link_shares(rows: Sequence[Result]) -> tuple[Result, ...]:
    """The rows, each with its bus bandwidth as a share of the link's, for the same allocation and backend."""
    limits = {(row.allocation, row.backend): row.link_bus_gb_per_s for row in rows if row.link_bus_gb_per_s}
    shared = []
    for row in rows:
        limit = limits.get((row.allocation, row.backend))
        if limit and row.bus_gb_per_s is not None:
            row = dataclasses.replace(row, link_share=row.bus_gb_per_s / limit)
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


def _join_run(
    run: Mapping[str, Any],
    jobs: Sequence[Job],
    attempts_by_job: Sequence[Sequence[AccountingRow]],
    records: RunRecords,
    local: bool,
) -> Result:
    """One row from three parts: what was requested, what the scheduler reports, what the run measured."""
    latest = _latest(attempts_by_job)
    state = _state(jobs, latest)
    reason = None
    if state.is_finished and not state.is_success:
        reason = explain(state, latest, records.failures, run["world_size"])
    scheduled = _scheduled(jobs, attempts_by_job, state, run["world_size"], local)
    return Result(**_requested(run), **scheduled, **_measured(records, state), reason=reason)


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


def _requested(run: Mapping[str, Any]) -> dict[str, Any]:
    """The columns that the sweep file decides: the allocation, and the config values that a training run varies."""
    train = run["train"]
    columns = {name: run[name] for name in ("run_id", "allocation", "world_size")}
    columns["model"] = train["model"]
    if train["model"] == LINK:
        return columns  # it trains nothing
    return columns | {name: train.get(name) for name in ("per_gpu_batch", "global_batch", "lr", "seed")}


def _scheduled(
    jobs: Sequence[Job],
    attempts_by_job: Sequence[Sequence[AccountingRow]],
    state: State,
    planned_gpus: int,
    local: bool,
) -> dict[str, Any]:
    """The columns that the scheduler reports; under the local executor only the state and the times."""
    columns: dict[str, Any] = {"state": state.value}
    latest = _latest(attempts_by_job)
    if latest is not None:
        columns["elapsed_s"] = latest.elapsed_s
        columns["submit_time"] = _iso(latest.submit_s)
        columns["start_time"] = _iso(latest.start_s)
        columns["end_time"] = _iso(latest.end_s)
    if latest is not None and state.is_finished:
        columns["exit_code"] = latest.exit_code
    if local:
        return columns
    attempts = [attempt for job_attempts in attempts_by_job for attempt in job_attempts]
    columns["attempts"] = len(attempts)
    if jobs:
        columns["job_id"] = jobs[-1].job_id
    if latest is not None:
        columns |= {name: getattr(latest, name) for name in ("queue_wait_s", "node_list", "max_rss_bytes")}
        columns |= _gpu_columns(attempts, planned_gpus)
    return columns


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
    """The columns of the run's own records: its steps so far, and all measurements after a successful end."""
    summary = records.summary
    if summary is None:
        return {"steps": records.last_step}
    columns: dict[str, Any] = {"steps": summary.steps}
    if not state.is_success:
        return columns
    columns |= {name: getattr(summary, name) for name in _SUMMARY_COLUMNS}
    columns["hosts"] = ",".join(summary.hosts)
    if summary.gpu_throttle is not None:
        columns["gpu_throttle"] = ",".join(summary.gpu_throttle) or "none"
    return columns


def _iso(time_s: int | None) -> str | None:
    if time_s is None:
        return None
    return datetime.fromtimestamp(time_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
