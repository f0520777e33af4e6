"""Finishes submissions that were interrupted: their jobs are on hold until the ledger has them, so none has started."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Mapping

from disttrain.errors import UserError
from jobs.slurm.control import cancel, release
from jobs.slurm.sacct_table import AccountingUnavailable
from jobs.slurm.script_jobs import record_script_jobs
from jobs.slurm.squeue import QueuedJob, cluster_name, query_squeue
from jobs.storage.ledger import Ledger, array_of, give_up, read_ledger, released
from jobs.storage.sweep_folder import SweepFolder

# A killed `sweep submit` leaves its sbatch running, which may wait for a busy controller before it makes its job.
LATEST_ANSWER_S = 3600.0

Queue = Mapping[str, QueuedJob]  # by job id


def finish_interrupted(
    folder: SweepFolder, ledger: Ledger, environ: Mapping[str, str], note: Callable[[str], None]
) -> Ledger:
    """Releases the jobs that earlier submissions have recorded, and cancels those that they have not.

    The runs of the latter are then sent again. Jobs of batch scripts, which the user submits, are recorded.

    Args:
        folder: The folder of the sweep, under its submission lock.
        ledger: Its ledger.
        environ: The environment of Slurm's commands.
        note: Prints a note for the user.

    Returns:
        The ledger as it is then.

    Raises:
        UserError: It cannot be known which jobs exist, or jobs are known neither by the ledger nor by a token.
    """
    ledger = record_script_jobs(folder, ledger, environ)
    if not (ledger.open_tokens or ledger.held or ledger.unconfirmed or ledger.damaged_lines):
        return ledger
    queue = _queue(folder, ledger, environ, note)
    if queue is None:
        return ledger
    if not ledger.damaged_lines:  # a damaged line may be the record of jobs that run
        _cancel_unrecorded(folder, ledger, queue, environ, note)
    if ledger.held:
        _release_left(folder, ledger, queue, environ, note)
    ledger = read_ledger(folder.path)
    if ledger.unconfirmed or ledger.damaged_lines:
        _check_unknown(folder, ledger, queue)
    return ledger


def _queue(
    folder: SweepFolder, ledger: Ledger, environ: Mapping[str, str], note: Callable[[str], None]
) -> Queue | None:
    """What squeue lists; None if it does not answer and no run could be sent twice without its answer."""
    try:
        return query_squeue(folder.job_name(), user_id=folder.owner_id(), environ=environ)
    except AccountingUnavailable as error:
        if ledger.unconfirmed:
            message = "an earlier submission was interrupted, and squeue cannot say which of its jobs exist"
            raise UserError(f"{message}: {error}") from None
        if ledger.damaged_lines:
            raise UserError(f"the ledger is damaged, and squeue cannot say which jobs exist: {error}") from None
        if ledger.held:
            note(f"{error}; jobs may still be on hold: {', '.join(ledger.held)}")
        return None


def _cancel_unrecorded(
    folder: SweepFolder, ledger: Ledger, queue: Queue, environ: Mapping[str, str], note: Callable[[str], None]
) -> None:
    if not ledger.open_tokens:
        return
    orphans = cancel_orphans(queue.values(), ledger.open_tokens, environ=environ)
    if orphans:
        note(f"cancelled what an interrupted submission has left on hold: {', '.join(orphans)}")
    now_s = time.time()
    found = {job.token for job in queue.values()}
    closed = [
        token for token, time_s in ledger.open_tokens.items() if token in found or now_s - time_s > LATEST_ANSWER_S
    ]
    if ledger.unconfirmed or closed:
        give_up(folder.path, ledger.unconfirmed, now_s, "the submission was interrupted", closed)


def cancel_orphans(queued: Iterable[QueuedJob], tokens: Collection[str], *, environ: Mapping[str, str]) -> list[str]:
    """Cancels the waiting jobs that carry one of these tokens.

    Args:
        queued: The jobs of the sweep that squeue lists.
        tokens: The tokens of submissions whose jobs are in no ledger.
        environ: The environment of scancel.

    Returns:
        The ids of the jobs and arrays.

    Raises:
        UserError: They could not be cancelled, or someone has released one of them, and it has started.
    """
    left = [job for job in queued if job.token in tokens and not job.state.is_finished]
    if freed := sorted(job.job_id for job in left if not job.state.is_pending):
        message = f"jobs of an interrupted submission have started: {', '.join(freed)}"
        raise UserError(message, hint=f"scancel {' '.join(freed)}, or wait until they end; then submit again")
    job_ids = list(dict.fromkeys(array_of(job.job_id) for job in left))
    if job_ids:
        cancel(job_ids, environ=environ)
    return job_ids


def _release_left(
    folder: SweepFolder, ledger: Ledger, queue: Queue, environ: Mapping[str, str], note: Callable[[str], None]
) -> None:
    """Releases jobs that are recorded, and whose submission ended before it released them."""
    here = cluster_name(environ=environ)
    may_be_here = {array_of(job.job_id) for job in ledger.all_jobs() if job.may_be_on(here)}
    # A job that waits for a time or for another job does not say that it is on hold too.
    waiting = {array_of(job_id) for job_id, job in queue.items() if job.state.is_pending}
    known = [job_id for job_id in ledger.held if job_id in may_be_here]
    left = [job_id for job_id in known if job_id in waiting]
    if left:
        release(left, environ=environ)
        note(f"released what an interrupted submission has left on hold: {', '.join(left)}")
    released(folder.path, known, time.time())


def _check_unknown(folder: SweepFolder, ledger: Ledger, queue: Queue) -> None:
    """Checks that no interrupted submission, and no damaged line, hides jobs that are not in the ledger."""
    in_ledger = {job.job_id for job in ledger.all_jobs()}
    unknown = sorted(job_id for job_id, job in queue.items() if job_id not in in_ledger and not job.state.is_finished)
    if unknown:
        message = f"an earlier submission was interrupted and left jobs that would run twice: {', '.join(unknown)}"
        if not ledger.unconfirmed:
            message = f"the ledger is damaged, and lacks jobs that would run twice: {', '.join(unknown)}"
        hint = f"scancel {' '.join(unknown)}, or wait until they end; then submit again"
        raise UserError(message, where=str(folder.path), hint=hint)
