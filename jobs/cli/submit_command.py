"""`sweep submit`: submits the runs that are not done, queued or running."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated

import typer

from disttrain.errors import UserError
from jobs.cli.options import ClusterName, Overrides, Root, SweepFile
from jobs.cli.shared import plan_sweep, print_results, read_status, stderr_console

if TYPE_CHECKING:
    from jobs.planning.plan import Plan
    from jobs.planning.sweep_file import Sweep

Wait = Annotated[bool, typer.Option("--wait", help="Wait until every run has ended, then print the results.")]
MaxParallel = Annotated[
    int | None,
    typer.Option(
        "--max-parallel",
        min=1,
        metavar="RANKS",
        help="With --cluster local: ranks that run at the same time. Default: the number of GPUs, or of cores.",
    ),
]
Poll = Annotated[
    float | None,
    typer.Option(
        "--poll",
        min=0.1,
        metavar="SECONDS",
        help="With --wait: seconds between two status checks. Default: 30, or 1 with --cluster local.",
    ),
]


def submit(
    file: SweepFile,
    cluster: ClusterName = None,
    set_: Overrides = None,
    root: Root = None,
    wait: Wait = False,
    max_parallel: MaxParallel = None,
    poll: Poll = None,
) -> None:
    """Submit the runs that are not done, queued or running.

    A second submit submits only failed and new runs. With --wait, the exit status is 1 if a run has ended without
    success.
    """
    from jobs.launch import debug, launch
    from jobs.planning.cluster_profile import DEBUG, LOCAL

    if poll is not None and not wait:
        raise UserError(f"--poll {poll:g} needs --wait", hint="add --wait, or leave out --poll")
    sweep, plan = plan_sweep(file, cluster, set_ or [], root)
    if max_parallel is not None and plan.cluster_name != LOCAL:
        hint = "for Slurm, set max_running in the cluster profile"
        raise UserError(f"--max-parallel {max_parallel} needs --cluster local", hint=hint)
    if plan.cluster_name == DEBUG:
        debug(plan, sweep)
    elif wait:
        _submit_and_wait(plan, sweep, max_parallel, poll)
    else:
        launch(plan, sweep, max_ranks=max_parallel)
        print(f"sweep status {sweep.name}    shows the progress")


def _submit_and_wait(plan: Plan, sweep: Sweep, max_parallel: int | None, poll_s: float | None) -> None:
    from jobs.launch import launch
    from jobs.planning.cluster_profile import LOCAL
    from jobs.results.watch import Watch
    from jobs.storage.sweep_folder import SweepFolder

    folder = SweepFolder(plan.folder)
    default_poll_s = 30.0
    if plan.cluster_name == LOCAL:
        default_poll_s = 1.0
    with Watch(folder, stderr_console(), os.environ, poll_s or default_poll_s) as watch:
        launch(plan, sweep, max_ranks=max_parallel, on_poll=watch.tick)
        try:
            watch.wait()
        except KeyboardInterrupt:
            watch.say(f"the jobs continue; sweep status {sweep.name} shows the progress")
            raise
    print_results(read_status(folder).results, folder)
