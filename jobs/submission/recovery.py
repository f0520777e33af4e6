"""Finishes interrupted submissions also when nothing is submitted: released jobs start, and nothing stays on hold.

It also finds the jobs of batch scripts that a user has submitted.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from disttrain.errors import UserError
from jobs.schedulers.scheduler import Scheduler
from jobs.schedulers.states import read_states, scheduler_for
from jobs.slurm.script_jobs import awaits_jobs
from jobs.storage.ledger import Ledger, read_ledger, submission_lock
from jobs.storage.sweep_folder import SweepFolder
from jobs.submission.messages import note


def recover(folder: SweepFolder, environ: Mapping[str, str]) -> None:
    """Releases what an interrupted submission has recorded, cancels what it has not, and records jobs of scripts.

    It does nothing in another user's folder, and while another command works there. What is not possible is a note.

    Args:
        folder: The folder of a submitted sweep.
        environ: The environment of Slurm's commands.
    """
    if not folder.is_owner():
        return
    unfinished = [part for part in (folder, folder.smoke) if _is_unfinished(part, read_ledger(part.path))]
    if not unfinished:
        return
    try:
        with submission_lock(folder.path):
            scheduler = scheduler_for(folder.plan().kind, environ)
            for part in unfinished:
                scheduler.finish_interrupted(part, read_ledger(part.path), note)
    except (UserError, OSError) as error:
        if any(_is_interrupted(read_ledger(part.path)) for part in unfinished):
            note(f"an interrupted submission is not finished yet: {error}")
        else:
            note(f"jobs that wait may be missing: {error}")


def _is_unfinished(folder: SweepFolder, ledger: Ledger) -> bool:
    return (_is_interrupted(ledger) or awaits_jobs(folder, ledger)) and not ledger.damaged_lines


def _is_interrupted(ledger: Ledger) -> bool:
    return bool(ledger.open_tokens or ledger.held)


def end_unneeded_smoke(
    folder: SweepFolder,
    ledger: Ledger,
    scheduler: Scheduler,
    *,
    again: Collection[str] = (),
    only: Collection[str] | None = None,
) -> None:
    """Ends the smoke runs for which no run waits: their submission was interrupted, or the runs were cancelled.

    Args:
        folder: The folder of the sweep, under its submission lock.
        ledger: Its ledger.
        scheduler: Its scheduler.
        again: The runs that are about to be sent again: they wait for their earlier smoke runs no longer.
        only: The smoke jobs of which those are ended that no run needs; None for all.

    Raises:
        UserError: They could not be ended.
    """
    smoke = folder.smoke
    known = scheduler.finish_interrupted(smoke, read_ledger(smoke.path), note)
    left_out = ledger.cancelled.union(again)
    needed = {job_id for run_id, jobs in ledger.jobs.items() if run_id not in left_out for job_id in jobs[-1].after}
    left = {run_id: jobs[-1] for run_id, jobs in known.jobs.items() if jobs[-1].job_id not in needed}
    if only is not None:
        left = {run_id: job for run_id, job in left.items() if job.job_id in only}
    if not left:
        return
    conclusions = read_states(smoke, smoke.job_name(), scheduler, known, list(left)).conclusions
    active = [job for run_id, job in left.items() if not conclusions[run_id].state.is_finished]
    if active:
        scheduler.cancel(active)
        note(f"cancelled smoke runs for which no run waits: {', '.join(job.job_id for job in active)}")
