"""Finishes interrupted submissions also when nothing is submitted: released jobs start, and nothing stays on hold."""

from __future__ import annotations

from collections.abc import Mapping

from disttrain.errors import UserError
from jobs.schedulers.states import scheduler_for
from jobs.storage.ledger import read_ledger, submission_lock
from jobs.storage.sweep_folder import SweepFolder
from jobs.submission.messages import note


def recover(folder: SweepFolder, environ: Mapping[str, str]) -> None:
    """Releases what an interrupted submission has recorded, and cancels what it has not.

    It does nothing in another user's folder, and while another command works there. What is not possible is a note.

    Args:
        folder: The folder of a submitted sweep.
        environ: The environment of Slurm's commands.
    """
    ledger = read_ledger(folder.path)
    if not (ledger.open_tokens or ledger.held) or ledger.damaged_lines or not folder.is_owner():
        return
    try:
        with submission_lock(folder.path):
            scheduler_for(folder.plan().kind, environ).finish_interrupted(folder, read_ledger(folder.path), note)
    except (UserError, OSError) as error:
        note(f"an interrupted submission is not finished yet: {error}")
