"""Finds the jobs of plain batch scripts that are not in the ledger: those that wait, and those whose line was lost.

A user submits the scripts. A job writes itself to the ledger only when it starts, and some shared file systems lose one
of two lines that nodes append at the same time.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping

from disttrain.errors import UserError
from disttrain.records.lifecycle.attempt_log import read_attempts
from jobs.slurm.sacct_table import AccountingUnavailable
from jobs.slurm.squeue import QueuedJob, query_squeue
from jobs.storage.ledger import BatchScript, Ledger, array_of, read_ledger, record
from jobs.storage.run_facts import has_summary
from jobs.storage.sweep_folder import SweepFolder

Found = tuple[str, str, str]  # the token of a script, the id of a run, and the id of its job


def awaits_jobs(folder: SweepFolder, ledger: Ledger) -> bool:
    """Whether a batch script may have jobs that the ledger lacks: a run of it is not done, or has no job."""
    return any(
        not has_summary(folder.run(run_id)) or run_id not in ledger.jobs
        for script in ledger.scripts.values()
        for run_id in filter(None, script.run_ids)
    )


def record_script_jobs(folder: SweepFolder, ledger: Ledger, environ: Mapping[str, str]) -> Ledger:
    """Records the jobs of batch scripts that squeue lists, or that have left the log of an attempt.

    Args:
        folder: The folder of the sweep, under its submission lock.
        ledger: Its ledger.
        environ: The environment of squeue.

    Returns:
        The ledger as it is then.

    Raises:
        UserError: squeue does not answer, so it cannot be known which scripts were submitted.
    """
    if not awaits_jobs(folder, ledger):
        return ledger
    try:
        queue = query_squeue(folder.job_name(), user_id=folder.owner_id(), environ=environ)
    except AccountingUnavailable as error:
        message = f"squeue cannot say which batch scripts were submitted: {error}"
        raise UserError(message, hint="run the command on a login node of their cluster") from None
    found = [*_started(folder, ledger), *_queued(folder, queue, ledger)]
    events: dict[tuple[str, str], dict[str, str]] = {}  # a job array has each run once
    for token, run_id, job_id in found:
        events.setdefault((token, array_of(job_id)), {})[run_id] = job_id
    for (token, _), jobs in events.items():
        record(folder.path, jobs, time.time(), token=token)
    return read_ledger(folder.path) if events else ledger


def _queued(folder: SweepFolder, queue: Mapping[str, QueuedJob], ledger: Ledger) -> Iterator[Found]:
    """The jobs that wait or run, of runs that are not done. One that has ended may be listed by the id of its array."""
    known = {job.job_id for job in ledger.all_jobs()}
    for job_id in sorted(queue.keys() - known, key=_order):
        job = queue[job_id]
        script = ledger.scripts.get(job.token or "")
        run_id = script.run_of(job_id) if script else None
        if script and run_id and not job.state.is_finished and not has_summary(folder.run(run_id)):
            yield script.token, run_id, job_id


def _order(job_id: str) -> tuple[int, str]:
    """In the order of submission: shorter numbers are earlier."""
    return len(array_of(job_id)), job_id


def _started(folder: SweepFolder, ledger: Ledger) -> Iterator[Found]:
    """The jobs that have begun an attempt, of runs of which the ledger has no job."""
    latest: dict[str, BatchScript] = {}
    for script in ledger.scripts.values():
        latest |= dict.fromkeys(filter(None, script.run_ids), script)
    for run_id in latest.keys() - ledger.jobs.keys():
        for attempt in read_attempts(folder.run(run_id))[-1:]:
            yield latest[run_id].token, run_id, attempt.job_id
