"""`sweep debug`: one run again, in this process."""

from __future__ import annotations

from jobs.cli.options import OfCluster, OfSweep, Root, RunName
from jobs.cli.shared import sweeps_root


def debug(run: RunName, sweep: OfSweep = None, cluster: OfCluster = None, root: Root = None) -> None:
    """Run one run of a submitted sweep again here, as one rank in this process: an error opens pdb.

    It has the recorded config, and starts from the beginning in a scratch folder. First it says what is not as in the
    recorded run: ranks, host, device, versions and code. Lines of setup in the profile are not run.
    """
    from jobs.planning.labels import Variation
    from jobs.storage.run_lookup import find_runs
    from jobs.storage.sweep_folder import find_folder
    from jobs.submission.debug_run import debug_run

    folder = find_folder(sweeps_root(root), sweep, cluster)
    planned = folder.planned_runs()
    (found,) = find_runs(planned, [run])
    debug_run(folder, found["run_id"], Variation(planned).name(found))
