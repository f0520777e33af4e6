"""`sweep submit`: submits the runs that are not done, queued or running."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from disttrain.errors import UserError
from jobs.cli.options import ClusterName, Overrides, Root, SweepFile
from jobs.cli.shared import plan_sweep, print_results, read_status, stderr_console


def submit(
    file: SweepFile,
    cluster: ClusterName = None,
    set_: Overrides = None,
    root: Root = None,
    wait: Annotated[
        bool, typer.Option("--wait", help="Wait until every run has ended, then print the results.")
    ] = False,
    max_parallel: Annotated[
        int | None,
        typer.Option(
            "--max-parallel",
            min=1,
            metavar="RANKS",
            help="With --cluster local: ranks that run at the same time. Default: the number of GPUs, or of cores.",
        ),
    ] = None,
    poll: Annotated[
        float | None,
        typer.Option(
            "--poll",
            min=0.1,
            metavar="SECONDS",
            help="With --wait: seconds between two status checks. Default: 30, or 1 with --cluster local.",
        ),
    ] = None,
) -> None:
    """Submit the runs that are not done, queued or running.

    A second submit submits only failed and new runs. With --wait, the exit status is 1 if a run has ended without
    success.
    """
    from jobs.launch import debug, launch
    from jobs.planning.cluster_profile import DEBUG, LOCAL
    from jobs.results.watch import Watch
    from jobs.storage.sweep_folder import SweepFolder

    sweep, sweep_plan = plan_sweep(file, cluster, set_ or [], root)
    if max_parallel is not None and sweep_plan.cluster_name != LOCAL:
        hint = "for Slurm, set max_running in the cluster profile"
        raise UserError(f"--max-parallel {max_parallel} needs --cluster local", hint=hint)
    if sweep_plan.cluster_name == DEBUG:
        debug(sweep_plan, sweep)
        return
    folder = SweepFolder(sweep_plan.folder)
    if not wait:
        launch(sweep_plan, sweep, max_ranks=max_parallel)
        print(f"sweep status {sweep.name}    shows the progress")
        return
    default_poll_s = 30.0
    if sweep_plan.cluster_name == LOCAL:
        default_poll_s = 1.0
    with Watch(folder, stderr_console(), os.environ, poll or default_poll_s) as watch:
        launch(sweep_plan, sweep, max_ranks=max_parallel, on_poll=watch.tick)
        try:
            watch.wait()
        except KeyboardInterrupt:
            watch.say(f"the jobs continue; sweep status {sweep.name} shows the progress")
            raise
    print_results(read_status(folder).results, folder)
