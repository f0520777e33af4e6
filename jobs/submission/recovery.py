"""Finishes interrupted submissions also when nothing is submitted: released jobs start, and nothing stays on hold.

It also finds the jobs of batch scripts that a user has submitted.
"""

from __future__ import annotations

from collections.abc import Mapping

from disttrain.errors import UserError
from jobs.schedulers.states import scheduler_for
from jobs.slurm.script_jobs import awaits_jobs
from jobs.storage.ledger import read_ledger, submission_lock
from jobs.storage.sweep_folder import SweepFolder
from jobs.submission.messages import note


def recover(folder: SweepFolder, environ: Mapping[str, str]) -> None:
    """Releases what an interrupted submission has recorded, cancels what it has not, and records jobs of scripts.

    It does nothing in another user's folder, and while another command works there. What is not possible is a note.

    Args:
        folder: The folder of a submitted sweep.
        environ: The environment of Slurm's commands.
    """
    ledger = read_ledger(folder.path)
    if not (ledger.open_tokens or ledger.held or awaits_jobs(folder, ledger)):
        return
    if ledger.damaged_lines or not folder.is_owner():
        return
    try:
        with submission_lock(folder.path):
            scheduler_for(folder.plan().kind, environ).finish_interrupted(folder, read_ledger(folder.path), note)
    except (UserError, OSError) as error:
        if ledger.open_tokens or ledger.held:
            note(f"an interrupted submission is not finished yet: {error}")
        else:
            note(f"jobs that wait may be missing: {error}")
