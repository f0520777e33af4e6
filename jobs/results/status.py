"""The current status of a sweep: one accounting query, saved in the sweep's folder and joined with the records."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from disttrain.records.atomic_write import write_text
from disttrain.records.json_values import to_json
from disttrain.records.record_files import FAILURE_GLOB, metrics_name
from jobs.local.local_queue import is_queue_alive
from jobs.planning.cluster_profile import LOCAL
from jobs.results.collect import join, run_states
from jobs.results.result import Result
from jobs.results.run_records import is_complete, read_run
from jobs.slurm.attempts import AccountingRow, attempts_by_job, merge_history
from jobs.slurm.sacct import query_sacct, queued_jobs
from jobs.slurm.sacct_table import AccountingUnavailable
from jobs.slurm.states import State
from jobs.storage.ledger import LEDGER_NAME, Ledger, append_lines, read_ledger, read_numbered_lines
from jobs.storage.sweep_folder import SweepFolder

_MAX_DELAY_S = 60  # slurmdbd lists a job within seconds


@dataclass(frozen=True)
class Status:
    """Every run of a sweep, and notices about how reliable these states are."""

    results: tuple[Result, ...]
    notices: tuple[str, ...]
    is_current: bool = True  # False if the accounting did not answer: the states are from an earlier answer
    is_saved: bool = True  # False if the answer of the accounting could not be saved; a notice says why


def read_status(folder: SweepFolder, environ: Mapping[str, str]) -> Status:
    """The state of every run, from one sacct call.

    sacct's answer is saved in accounting.jsonl, if this user owns the folder, because sites purge their accounting.

    Args:
        folder: The folder of a submitted sweep.
        environ: The environment for sacct.
    """
    ledger = read_ledger(folder.path)
    accounting = _read_accounting(folder, ledger, environ)
    planned = folder.planned_runs()
    notices = (*accounting.damage, *accounting.notices, *_unsubmitted_notice(planned, ledger))
    records = {run["run_id"]: read_run(folder.run(run["run_id"])) for run in planned}
    local = folder.cluster_name == LOCAL
    results = join(planned, ledger, attempts_by_job(accounting.rows), records, local=local)
    return Status(results, notices, accounting.is_current, accounting.is_saved)


def _unsubmitted_notice(planned: Sequence[Mapping[str, Any]], ledger: Ledger) -> tuple[str, ...]:
    """A notice if the ledger has no job of some runs. With damaged lines, they may have been submitted."""
    without_job = {run["run_id"] for run in planned} - set(ledger.jobs)
    if without_job and ledger.damaged_lines:
        number = f"{len(without_job)} of {len(planned)} runs"
        return (f"{number} have no job in the readable lines of {LEDGER_NAME}; they may have been submitted",)
    unsubmitted = without_job - set(ledger.unconfirmed)
    if not unsubmitted:
        return ()
    return (f"{len(unsubmitted)} of {len(planned)} runs were never submitted; sweep submit submits them",)


@dataclass(frozen=True)
class States:
    """The state of some runs by run id, notices, and the damage in the ledger and the accounting, a line for each."""

    by_run: Mapping[str, State]
    notices: tuple[str, ...] = ()
    damage: tuple[str, ...] = ()


def read_states(folder: SweepFolder, run_ids: Sequence[str], ledger: Ledger, environ: Mapping[str, str]) -> States:
    """The state of each run, from one sacct call as in `read_status`. plan.json need not have the runs."""
    accounting = _read_accounting(folder, ledger, environ)
    states = run_states(run_ids, ledger, attempts_by_job(accounting.rows))
    return States(states, accounting.notices, accounting.damage)


@dataclass(frozen=True)
class _Accounting:
    """The rows of all attempts, and the damage in the files; the other fields are those of `Status`."""

    rows: tuple[AccountingRow, ...]
    damage: tuple[str, ...]
    notices: tuple[str, ...]
    is_current: bool
    is_saved: bool


def _read_accounting(folder: SweepFolder, ledger: Ledger, environ: Mapping[str, str]) -> _Accounting:
    """The attempts of all jobs in the ledger: from Slurm, or as the local queue has written them."""
    saved, damaged_rows = _saved_rows(folder.accounting_file)
    damage = (
        *_damage_notice(LEDGER_NAME, ledger.damaged_lines, "jobs may be missing"),
        *_damage_notice(folder.accounting_file.name, damaged_rows, "states may be missing"),
    )
    notices: list[str] = []
    is_current = is_saved = True
    if folder.cluster_name == LOCAL:
        rows: tuple[AccountingRow, ...] = _end_abandoned(saved, ledger, folder)
    else:
        try:
            rows, unsaved = _query_accounting(folder, ledger, saved, environ)
            notices += unsaved
            is_saved = not unsaved
        except AccountingUnavailable as error:
            notices.append(f"{error}; the states are from the last successful query")
            rows, is_current = saved, False
    if ledger.unconfirmed and not ledger.damaged_lines:
        notices.append(
            f"a submission of {len(ledger.unconfirmed)} runs was interrupted:"
            f" squeue --name={folder.sweep_name} shows which of its jobs exist"
        )
    return _Accounting(rows, damage, tuple(notices), is_current, is_saved)


def _damage_notice(name: str, numbers: Sequence[int], consequence: str) -> tuple[str, ...]:
    """A notice if a file of the sweep has damaged lines."""
    if not numbers:
        return ()
    lines = f"line {numbers[0]} of {name} is damaged"
    if len(numbers) > 1:
        lines = f"{len(numbers)} lines of {name} are damaged, the first is line {numbers[0]}"
    return (f"{lines}: {consequence}",)


@dataclass(frozen=True)
class LastKnown:
    """The states of a sweep's runs by the last answer of Slurm.

    Attributes:
        states: The state of each run that the sweep file still has, by run id.
        known_s: The time of that answer, in seconds since 1970; None if Slurm was never asked.
    """

    states: Mapping[str, State]
    known_s: float | None


def last_known(folder: SweepFolder) -> LastKnown:
    """The states of a sweep's runs, without a question to Slurm."""
    ledger, (rows, _) = read_ledger(folder.path), _saved_rows(folder.accounting_file)
    known_s = folder.last_query_s()
    if folder.cluster_name == LOCAL:
        rows, known_s = _end_abandoned(rows, ledger, folder), time.time()  # the queue itself writes the states
    present = [run["run_id"] for run in folder.planned_runs() if not run.get("dropped", False)]
    return LastKnown(run_states(present, ledger, attempts_by_job(rows)), known_s)


def _query_accounting(
    folder: SweepFolder, ledger: Ledger, saved: tuple[AccountingRow, ...], environ: Mapping[str, str]
) -> tuple[tuple[AccountingRow, ...], tuple[str, ...]]:
    """The rows of all attempts, and notices: saved rows, those of a new sacct call, and what missing ones mean."""
    jobs = tuple(ledger.all_jobs())
    since_s = min((job.submitted_s for job in jobs), default=None)
    rows = query_sacct([job.job_id for job in jobs], environ=environ, since_s=since_s)
    merged = merge_history(saved, rows)
    notices: tuple[str, ...] = ()
    if folder.is_owner():
        notices = _save(folder, saved, merged)
    # After the writing: these states are only inferred, and a later answer of sacct must be able to replace them.
    inferred = (*map(_requeued_if_recent, merged), *_cancelled_while_pending(folder, ledger, merged, environ))
    return inferred, notices


def _save(folder: SweepFolder, saved: Sequence[AccountingRow], merged: Sequence[AccountingRow]) -> tuple[str, ...]:
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


def _requeued_if_recent(row: AccountingRow) -> AccountingRow:
    """The row; REQUEUED if the job was just preempted or lost its node: Slurm may requeue it seconds later."""
    if row.state in (State.PREEMPTED, State.NODE_FAIL) and row.end_s and time.time() - row.end_s < _MAX_DELAY_S:
        return replace(row, state=State.REQUEUED)
    return row


def _cancelled_while_pending(
    folder: SweepFolder, ledger: Ledger, rows: Sequence[AccountingRow], environ: Mapping[str, str]
) -> list[AccountingRow]:
    """Rows of jobs that were cancelled while they waited: sacct may never list such array tasks.

    A job counts as cancelled if sacct has not listed it for a minute, squeue does not list it, and no rank has started.
    A job that ran has records, and sacct may only be late.
    """
    now_s = time.time()
    known = {row.job_id for row in rows}
    known |= {row.job_id.partition("_")[0] for row in rows if "_" not in row.job_id}
    unlisted = [
        jobs[-1]
        for run_id, jobs in ledger.jobs.items()
        if not {jobs[-1].job_id, jobs[-1].job_id.partition("_")[0]} & known
        and now_s - jobs[-1].submitted_s > _MAX_DELAY_S
        and not _has_records_since(folder.run(run_id) / metrics_name(0), jobs[-1].submitted_s)
    ]
    if not unlisted:
        return []
    try:
        queued = queued_jobs(folder.sweep_name, environ=environ)
    except AccountingUnavailable:
        return []  # without squeue's answer the jobs may still be queued
    return [
        AccountingRow(job.job_id, state=State.CANCELLED, submit_s=int(job.submitted_s), end_s=int(now_s))
        for job in unlisted
        if job.job_id not in queued
    ]


def _has_records_since(path: Path, submitted_s: float) -> bool:
    """Whether a rank has written since then; a resumed run still has the records of an earlier job."""
    try:
        return path.stat().st_mtime >= submitted_s
    except OSError:
        return False


def _without_elapsed(row: AccountingRow) -> AccountingRow:
    """The row; of an unfinished job without elapsed_s, which changes with every query."""
    if row.state.is_finished:
        return row
    return replace(row, elapsed_s=None)


def _saved_rows(path: Path) -> tuple[tuple[AccountingRow, ...], list[int]]:
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


def _end_abandoned(rows: tuple[AccountingRow, ...], ledger: Ledger, folder: SweepFolder) -> tuple[AccountingRow, ...]:
    """The rows, with an end for unfinished local runs whose queue process was killed or lost in a reboot.

    A run with a summary is COMPLETED: the queue, which writes the state, had no time for it, or its line is damaged.
    Any other run is CANCELLED.
    """
    queues = {job.job_id: job.queue for job in ledger.all_jobs() if job.queue is not None}
    alive = {queue: is_queue_alive(queue) for queue in set(queues.values())}
    finished = {row.job_id for row in rows if row.state.is_finished}
    abandoned = {job_id for job_id, queue in queues.items() if not alive[queue]} - finished
    if not abandoned:
        return rows
    latest = {jobs[-1].job_id: run_id for run_id, jobs in ledger.jobs.items()}
    ends = dict.fromkeys(abandoned, State.CANCELLED)
    for job_id in abandoned & set(latest):
        run_dir = folder.run(latest[job_id])
        if is_complete(run_dir) and not any(run_dir.glob(FAILURE_GLOB)):
            ends[job_id] = State.COMPLETED
    updated = tuple(replace(row, state=ends.get(row.job_id, row.state)) for row in rows)
    unrecorded = abandoned - {row.job_id for row in rows}
    return (*updated, *(AccountingRow(job_id, state=ends[job_id]) for job_id in sorted(unrecorded)))
