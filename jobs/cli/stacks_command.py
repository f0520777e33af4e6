"""`sweep stacks`: where the ranks of a run are at this moment."""

from __future__ import annotations

from disttrain.errors import UserError
from jobs.cli.options import OfCluster, OfSweep, Root, RunNames
from jobs.cli.shared import sweeps_root


def stacks(run: RunNames = None, sweep: OfSweep = None, cluster: OfCluster = None, root: Root = None) -> None:
    """Write the Python stacks of every rank of a run that runs, and show where each rank is. The run continues."""
    from jobs.storage.sweep_folder import find_folder
    from jobs.submission.stack_requests import request_stacks

    if not run:
        raise UserError("sweep stacks needs the runs", hint="sweep status shows their labels")
    request_stacks(find_folder(sweeps_root(root), sweep, cluster), run)
