"""`sweep retry` and `sweep rerun`: send runs again, from their last checkpoint or from the beginning."""

from __future__ import annotations

from disttrain.errors import UserError
from jobs.cli.options import OfCluster, OfSweep, Root, RunNames
from jobs.cli.shared import sweeps_root


def retry(run: RunNames = None, sweep: OfSweep = None, cluster: OfCluster = None, root: Root = None) -> None:
    """Send failed and cancelled runs again: those that you name, or all. They resume from their last checkpoint."""
    from jobs.storage.sweep_folder import find_folder
    from jobs.submission.resend import resend

    resend(find_folder(sweeps_root(root), sweep, cluster), run or (), from_start=False)


def rerun(run: RunNames = None, sweep: OfSweep = None, cluster: OfCluster = None, root: Root = None) -> None:
    """Send runs again from the beginning, although they are done.

    The files of the earlier result move to earlier/ in the folder of the run.
    """
    from jobs.storage.sweep_folder import find_folder
    from jobs.submission.resend import resend

    if not run:
        raise UserError("sweep rerun needs the runs", hint="sweep status shows their labels")
    resend(find_folder(sweeps_root(root), sweep, cluster), run, from_start=True)
