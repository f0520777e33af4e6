"""The join of a sweep's three truths: the ledger's jobs, the accounting of each attempt, the records of each run."""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from disttrain.config.train_config import LINK
from disttrain.records.record_files import FAILURE_GLOB, SUMMARY_NAME, from_json, metrics_name
from disttrain.records.record_types import ExchangeRecord, StepRecord
from disttrain.records.summary_types import Failure, Summary
from jobs.slurm.attempts import AccountingRow
from jobs.slurm.states import JobPhase, State
from jobs.storage.ledger import Job, Ledger

# How much of a file's end is read, one after the other, until it has a step.
_TAILS_BYTES = (2**12, 2**16, 2**20, 2**24)
_OF_A_STEP = {StepRecord.kind, ExchangeRecord.kind}
# What gloo and NCCL say when the process at the other end has gone.
_LOST_PEER = re.compile(r"[Cc]onnection (closed|reset)|[Bb]roken pipe|remote process exited|socket.*closed", re.DOTALL)


@dataclass(frozen=True)
class RunRecords:
    """What one run says of itself."""

    summary: Summary | None = None
    failures: tuple[Failure, ...] = ()  # earliest first
    last_step: int | None = None  # that rank 0 has written down


@dataclass(frozen=True, kw_only=True)
class Result:
    """One run of a sweep: what was asked, how it ended, what it measured. Its fields are the columns of every output.

    Columns that only Slurm can fill are None for the local executor, and all that is not known yet is None.
    """

    run_id: str
    allocation: str
    model: str
    per_gpu_batch: int | None
    global_batch: int | None
    lr: float | None
    seed: int | None
    state: str
    exit_code: int | None
    reason: str | None  # why it did not complete
    # Slurm's accounting
    job_id: str | None
    attempts: int | None  # over all its submissions
    submit_time: str | None  # ISO 8601, UTC
    start_time: str | None
    end_time: str | None
    queue_wait_s: int | None  # of the latest attempt: start - submit
    elapsed_s: int | None  # of the latest attempt
    gpu_hours: float | None  # over all attempts
    gpu_hours_from: str | None  # sacct, or plan where the site's accounting does not count GPUs
    node_list: str | None
    max_rss_bytes: int | None  # largest task of the largest step
    # the run's own records
    world_size: int
    backend: str | None
    device_name: str | None
    comparable: bool | None  # False: shared GPU, or nodes folded onto one host
    steps: int | None  # so far
    train_s: float | None
    samples_per_s: float | None
    samples_per_s_per_gpu: float | None
    train_loss: float | None
    eval_loss: float | None
    eval_accuracy: float | None
    data_ms: float | None
    forward_ms: float | None
    backward_ms: float | None
    optimizer_ms: float | None
    step_ms: float | None
    backward_compute_ms: float | None
    exposed_comm_ms: float | None
    overlapped_comm_ms: float | None
    data_p95_ms: float | None  # as the minimum: over the measured steps of rank 0
    data_min_ms: float | None
    forward_p95_ms: float | None
    forward_min_ms: float | None
    backward_p95_ms: float | None
    backward_min_ms: float | None
    backward_compute_p95_ms: float | None
    backward_compute_min_ms: float | None
    exposed_comm_p95_ms: float | None
    exposed_comm_min_ms: float | None
    overlapped_comm_p95_ms: float | None
    overlapped_comm_min_ms: float | None
    optimizer_p95_ms: float | None
    optimizer_min_ms: float | None
    step_p95_ms: float | None
    step_min_ms: float | None
    bucket_count: int | None
    exchange_ms: float | None
    bus_gb_per_s: float | None
    link_share: float | None  # bus_gb_per_s / link_bus_gb_per_s of the sweep's run that measured the allocation's link
    check_exposed_ms: float | None  # of rank 0's cross check, as the next four
    no_sync_exposed_ms: float | None
    no_sync_difference: float | None
    no_sync_is_check: bool | None  # else a bound
    ddp_exposed_ms: float | None
    slowest_rank: int | None
    slowest_host: str | None
    slowest_ratio: float | None
    link_latency_ms: float | None  # of a run of model link, as link_bus_gb_per_s
    link_bus_gb_per_s: float | None
    gpu_util_percent: float | None  # telemetry: of rank 0, but for the energy, which is of all boards
    gpu_power_w: float | None
    gpu_memory_peak_mib: float | None
    gpu_temperature_peak_c: float | None
    gpu_throttle: str | None  # every reason; "none": it was looked for and never found
    gpu_energy_j: float | None
    gpu_energy_source: str | None
    process_cpu_percent: float | None
    process_memory_peak_mib: float | None
    hosts: str | None  # of each rank, by rank

    @property
    def phase(self) -> JobPhase:
        return State(self.state).phase


COLUMNS = tuple(field.name for field in dataclasses.fields(Result))
# What a run says of itself under the same name; the four are told of a run without a summary too, or in another form.
_FROM_SUMMARY = {field.name for field in dataclasses.fields(Summary)} & set(COLUMNS) - {
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
        planned: Runs as `plan.run_json` wrote them.
        ledger: What was sent.
        attempts: Every known attempt, oldest first, by job id.
        records: By run id; a run without any may be missing.
        local: The sweep ran under the local executor: columns that only Slurm can fill stay empty.
    """
    rows = []
    for run in planned:
        jobs = ledger.jobs.get(run["run_id"], ())
        known = [_attempts_of(job.job_id, attempts) for job in jobs]
        rows.append(_join_run(run, jobs, known, records.get(run["run_id"], RunRecords()), local))
    return _with_link_shares(rows)


def _with_link_shares(rows: Sequence[Result]) -> tuple[Result, ...]:
    """The rows, each exchange as a share of what the link of its allocation carries by the same backend."""
    limits = {(row.allocation, row.backend): row.link_bus_gb_per_s for row in rows if row.link_bus_gb_per_s}
    return tuple(
        dataclasses.replace(row, link_share=row.bus_gb_per_s / limit)
        if row.bus_gb_per_s is not None and (limit := limits.get((row.allocation, row.backend)))
        else row
        for row in rows
    )


def _attempts_of(job_id: str, attempts: Mapping[str, Sequence[AccountingRow]]) -> tuple[AccountingRow, ...]:
    """A job's own attempts; of an array's task that has none, those that the array had as a whole."""
    own = tuple(attempts.get(job_id, ()))
    array, _, task = job_id.partition("_")
    if own or not task:
        return own
    # One cancelled within a second or two of sbatch has its bare id in sacct, and no tasks.
    return tuple(attempt for attempt in attempts.get(array, ()) if attempt.start_s is None)


def _join_run(
    run: Mapping[str, Any],
    jobs: Sequence[Job],
    attempts: Sequence[Sequence[AccountingRow]],
    records: RunRecords,
    local: bool,
) -> Result:
    """One row; `attempts` are those of each job."""
    latest = attempts[-1][-1] if attempts and attempts[-1] else None
    every = [attempt for of_job in attempts for attempt in of_job]
    # sacct knows a job only some seconds after sbatch: no row is not an end.
    state = latest.state if latest else State.PENDING if jobs else State.NOT_SUBMITTED
    if state is State.FAILED and latest and latest.out_of_memory:
        state = State.OUT_OF_MEMORY  # Slurm from 22.05.4 on says so in the step alone
    trained = run["train"] if run["train"]["model"] != LINK else {}
    summary = records.summary if state.is_success else None
    throttle = summary.gpu_throttle if summary else None
    slurm = None if local else latest
    return Result(
        run_id=run["run_id"],
        allocation=run["allocation"],
        model=run["train"]["model"],
        per_gpu_batch=trained.get("per_gpu_batch"),
        global_batch=trained.get("global_batch"),
        lr=trained.get("lr"),
        seed=trained.get("seed"),
        state=state.value,
        exit_code=latest.exit_code if latest and state.is_finished else None,
        reason=explain(state, latest, records.failures, run["world_size"])
        if state.is_finished and not state.is_success
        else None,
        job_id=jobs[-1].job_id if jobs and not local else None,
        attempts=None if local else len(every),
        submit_time=_iso(latest.submit_s if latest else None),
        start_time=_iso(latest.start_s if latest else None),
        end_time=_iso(latest.end_s if latest else None),
        queue_wait_s=slurm.queue_wait_s if slurm else None,
        elapsed_s=latest.elapsed_s if latest else None,
        gpu_hours=_gpu_hours(every, run["world_size"]) if slurm else None,
        gpu_hours_from=("sacct" if all(attempt.counts_gpus for attempt in every) else "plan") if slurm else None,
        node_list=slurm.node_list if slurm else None,
        max_rss_bytes=slurm.max_rss_bytes if slurm else None,
        world_size=run["world_size"],
        steps=records.summary.steps if records.summary else records.last_step,
        hosts=",".join(summary.hosts) if summary else None,
        gpu_throttle=None if throttle is None else ",".join(throttle) or "none",
        link_share=None,  # needs the other rows
        **{name: getattr(summary, name, None) for name in _FROM_SUMMARY},
    )


def explain(state: State, attempt: AccountingRow | None, failures: Sequence[Failure], world_size: int) -> str:
    """Why a run did not complete, in one line.

    Where Slurm itself ended the run, what Slurm knows: what ranks say of that is that a peer has gone. Else what the
    first rank to fail says of itself, since the others fail because of it.
    """
    if state is State.OUT_OF_MEMORY:
        return "out of memory: ask for more with memory_gb_per_gpu"
    if state is State.TIMEOUT and attempt and attempt.timelimit_min:
        return f"time limit of {attempt.timelimit_min} min reached"
    if state is State.NODE_FAIL:
        return f"node {attempt.failed_node or attempt.node_list} failed" if attempt else "a node failed"
    if state is not State.FAILED:
        return state.value.lower().replace("_", " ")
    if failures:
        first = failures[0]
        told = f"rank {first.rank} on {first.host}: {first.error}: {' '.join(first.message.split())}"
        # A rank that was killed leaves no word; the first to speak has only lost its peer.
        silent = [str(rank) for rank in range(world_size) if rank not in {failure.rank for failure in failures}]
        lost_peer = _LOST_PEER.search(first.message) is not None
        return f"{told}; without a word: rank {', '.join(silent)}, killed?" if silent and lost_peer else told
    if attempt and attempt.exit_signal:
        return f"ended by signal {attempt.exit_signal}; no rank said why: see its log"
    return "no rank said why: see its log"


def read_run(run_dir: Path) -> RunRecords:
    """The summary and the failures in a run's folder."""
    summary_path = run_dir / SUMMARY_NAME
    summary = from_json(Summary, _read_json(summary_path)) if summary_path.exists() else None
    failures = [from_json(Failure, _read_json(path)) for path in run_dir.glob(FAILURE_GLOB)]
    ordered = sorted(failures, key=lambda failure: failure.time_s)
    return RunRecords(summary, tuple(ordered), None if summary else _last_step(run_dir / metrics_name(0)))


def _last_step(path: Path) -> int | None:
    """The last optimizer step in a file of records, from its end: a long run's file is long.

    The first tail has it, unless what follows the step is longer: the exchange of many buckets, or much telemetry.
    """
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            for tail in _TAILS_BYTES:
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
            continue  # cut by the tail, or still being written
        # Not any record with a step: a checkpoint is written beside the loop, and tells of an earlier one.
        if record["kind"] in _OF_A_STEP:
            return int(record["step"])
    return None


def _read_json(path: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return values


def _gpu_hours(attempts: Sequence[AccountingRow], planned_gpus: int) -> float:
    """GPU-hours of all attempts; by the plan's GPUs where a site does not account them (AccountingStorageTRES)."""
    hours = (
        attempt.gpu_hours if attempt.gpu_hours is not None else planned_gpus * (attempt.elapsed_s or 0) / 3600
        for attempt in attempts
    )
    return round(sum(hours), 6)


def _iso(time_s: int | None) -> str | None:
    if time_s is None:
        return None
    return datetime.fromtimestamp(time_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
