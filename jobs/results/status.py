"""What became of a sweep, now: asks the accounting once, keeps what it said, and joins it with the records."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from disttrain.records.record_files import metrics_name
from jobs.local.local_queue import is_queue_alive
from jobs.planning.cluster_profile import LOCAL
from jobs.results.collect import Result, join, read_run
from jobs.slurm.attempts import AccountingRow, attempts_by_job, merge_history
from jobs.slurm.sacct import AccountingUnavailable, query_sacct, queued_jobs
from jobs.slurm.states import State
from jobs.storage.ledger import Ledger, append_lines, read_ledger, read_lines
from jobs.storage.sweep_folder import SweepFolder

_LATE_S = 60  # slurmdbd tells of a job within seconds


@dataclass(frozen=True)
class Status:
    """Every run of a sweep, and what the reader should know about how it was found out."""

    results: tuple[Result, ...]
    notices: tuple[str, ...]


def read_status(folder: SweepFolder, environ: Mapping[str, str]) -> Status:
    """The state of every run; one sacct call for all of them.

    What sacct said is kept in accounting.jsonl, if this user may write there: sites purge their accounting.

    Args:
        folder: Of a sweep that was submitted.
        environ: For sacct.
    """
    ledger = read_ledger(folder.path)
    kept = _kept_rows(folder.accounting_file)
    notices = []
    if folder.cluster_name == LOCAL:
        rows: tuple[AccountingRow, ...] = _end_abandoned(kept, ledger)
    else:
        try:
            rows = _ask_sacct(folder, ledger, kept, environ)
        except AccountingUnavailable as error:
            notices.append(f"{error}; states are those of the last answer")
            rows = kept
    if ledger.unconfirmed:
        notices.append(
            f"a submission broke off while it sent {len(ledger.unconfirmed)} runs: squeue --name={folder.sweep_name}"
            " shows what of it is queued"
        )
    planned = folder.planned_runs()
    unsent = {run["run_id"] for run in planned} - set(ledger.jobs) - set(ledger.unconfirmed)
    if unsent:
        notices.append(f"{len(unsent)} of {len(planned)} runs were never sent; sweep submit sends them")
    records = {run["run_id"]: read_run(folder.run(run["run_id"])) for run in planned}
    local = folder.cluster_name == LOCAL
    return Status(join(planned, ledger, attempts_by_job(rows), records, local=local), tuple(notices))


def _ask_sacct(
    folder: SweepFolder, ledger: Ledger, kept: tuple[AccountingRow, ...], environ: Mapping[str, str]
) -> tuple[AccountingRow, ...]:
    jobs = tuple(ledger.all_jobs())
    since_s = min((job.submitted_s for job in jobs), default=None)
    rows = query_sacct([job.job_id for job in jobs], environ=environ, since_s=since_s)
    merged = merge_history(kept, rows)
    # Only what is new: the file grows with what happened, not with how often somebody looked at what still runs.
    known = {_lasting(row) for row in kept}
    new = [row for row in merged if _lasting(row) not in known]
    if new and folder.is_owner():
        append_lines(folder.accounting_file, [json.dumps(row.to_json()) for row in new])
    # Behind the writing: what is only concluded must give way to what sacct may still tell.
    return (*map(_unless_requeued, merged), *_vanished(folder, ledger, merged, environ))


def _unless_requeued(row: AccountingRow) -> AccountingRow:
    """A job that was preempted or lost its node is queued again by Slurm, seconds later, as another attempt."""
    if row.state in (State.PREEMPTED, State.NODE_FAIL) and row.end_s and time.time() - row.end_s < _LATE_S:
        return replace(row, state=State.REQUEUED)
    return row


def _vanished(
    folder: SweepFolder, ledger: Ledger, rows: Sequence[AccountingRow], environ: Mapping[str, str]
) -> list[AccountingRow]:
    """Jobs that were cancelled while they waited: sacct may have no row of such an array task, ever.

    Cancelled is one that sacct has not told of for a minute, that squeue does not know, and that never started a
    rank: one that ran has its records, and sacct may only be late.
    """
    now_s = time.time()
    known = {row.job_id for row in rows}
    known |= {row.job_id.partition("_")[0] for row in rows if "_" not in row.job_id}
    silent = [
        jobs[-1]
        for run_id, jobs in ledger.jobs.items()
        if not {jobs[-1].job_id, jobs[-1].job_id.partition("_")[0]} & known
        and now_s - jobs[-1].submitted_s > _LATE_S
        and not _has_records_since(folder.run(run_id) / metrics_name(0), jobs[-1].submitted_s)
    ]
    if not silent:
        return []
    try:
        queued = queued_jobs(folder.sweep_name, environ=environ)
    except AccountingUnavailable:
        return []  # then nothing says that they have gone
    return [
        AccountingRow(job.job_id, state=State.CANCELLED, submit_s=int(job.submitted_s), end_s=int(now_s))
        for job in silent
        if job.job_id not in queued
    ]


def _has_records_since(path: Path, submitted_s: float) -> bool:
    """Whether a rank has written since then; a run that goes on from a checkpoint keeps an earlier job's records."""
    try:
        return path.stat().st_mtime >= submitted_s
    except FileNotFoundError:
        return False


def _lasting(row: AccountingRow) -> AccountingRow:
    """The row without what changes by itself while the job runs."""
    return row if row.state.is_finished else replace(row, elapsed_s=None)


def _kept_rows(path: Path) -> tuple[AccountingRow, ...]:
    if not path.exists():
        return ()
    return merge_history((), [AccountingRow.from_json(values) for values in read_lines(path)])


def _end_abandoned(rows: tuple[AccountingRow, ...], ledger: Ledger) -> tuple[AccountingRow, ...]:
    """Local runs whose queue is gone, killed or lost with a reboot, will not go on: they read as cancelled."""
    queues = {job.job_id: job.queue for job in ledger.all_jobs() if job.queue is not None}
    alive = {queue: is_queue_alive(queue) for queue in set(queues.values())}
    gone = {job_id for job_id, queue in queues.items() if not alive[queue]}
    known = {row.job_id for row in rows}
    never_noted = [AccountingRow(job_id, state=State.CANCELLED) for job_id in sorted(gone - known)]
    ended = [
        replace(row, state=State.CANCELLED) if row.job_id in gone and not row.state.is_finished else row for row in rows
    ]
    return (*ended, *never_noted)
