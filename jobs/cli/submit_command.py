"""`sweep submit`: sends the runs that are neither done nor queued."""

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
    wait: Annotated[bool, typer.Option("--wait", help="Return when every run has ended.")] = False,
    max_parallel: Annotated[
        int | None,
        typer.Option("--max-parallel", min=1, metavar="RANKS", help="local: ranks at once. Default: GPUs, else cores."),
    ] = None,
    poll: Annotated[
        float | None,
        typer.Option("--poll", min=0.1, metavar="SECONDS", help="--wait: between looks. Default: 30; local 1."),
    ] = None,
) -> None:
    """Send the runs that are neither done nor under way."""
    from jobs.launch import debug, launch
    from jobs.planning.cluster_profile import DEBUG, LOCAL
    from jobs.results.watch import Watch
    from jobs.storage.sweep_folder import SweepFolder

    sweep, made = plan_sweep(file, cluster, set_ or [], root)
    if max_parallel is not None and made.cluster_name != LOCAL:
        raise UserError(
            f"--max-parallel {max_parallel} is for --cluster local", hint="a profile has max_running for this"
        )
    if made.cluster_name == DEBUG:
        debug(made, sweep)
        return
    folder = SweepFolder(made.folder)
    if not wait:
        launch(made, sweep, max_ranks=max_parallel)
        print(f"sweep status {sweep.name}    shows how it goes")
        return
    with Watch(folder, stderr_console(), os.environ, poll or (1.0 if made.cluster_name == LOCAL else 30.0)) as watch:
        launch(made, sweep, max_ranks=max_parallel, tick=watch.tick)
        try:
            watch.wait()
        except KeyboardInterrupt:
            watch.say(f"the jobs go on; sweep status {sweep.name} shows how")
            raise
    print_results(read_status(folder).results, folder)
