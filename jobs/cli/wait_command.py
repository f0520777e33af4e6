"""`sweep wait`: waits until every submitted run of a sweep has ended."""

from __future__ import annotations

import os

from jobs.cli.options import Json, OfCluster, Poll, Root, SubmittedSweep
from jobs.cli.results_output import print_ended
from jobs.cli.shared import stderr_console, sweeps_root


def wait(
    sweep: SubmittedSweep = None,
    cluster: OfCluster = None,
    root: Root = None,
    poll: Poll = None,
    json_: Json = False,
) -> None:
    """Wait until every submitted run of the sweep file has ended, then print the results. Nothing is submitted.

    The exit status is 1 if one of these runs has ended without success.
    """
    from jobs.results.status import submitted_runs
    from jobs.results.watch import Watch
    from jobs.schedulers.states import scheduler_for, watching_scheduler
    from jobs.storage.sweep_folder import find_folder
    from jobs.submission.recovery import recover

    folder = find_folder(sweeps_root(root), sweep, cluster)
    recover(folder, os.environ)
    run_ids = submitted_runs(folder)
    kind = folder.plan().kind
    poll_s = poll or scheduler_for(kind, os.environ).poll_s
    shared = None
    if poll is None and kind == "slurm":
        shared = watching_scheduler(kind, os.environ)
    if run_ids:
        with Watch(folder, run_ids, stderr_console(), os.environ, poll_s, shared) as watch:
            watch.wait()
    print_ended(folder, run_ids, as_json=json_)
