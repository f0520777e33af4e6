"""`sweep retry` and `sweep rerun`: send runs again, from their last checkpoint or from the beginning."""

from __future__ import annotations

from typing import Annotated

import typer

from disttrain.errors import UserError
from jobs.cli.options import OfCluster, OfSweep, Root, RunNames
from jobs.cli.shared import sweeps_root


def retry(
    run: RunNames = None,
    state: Annotated[
        str | None, typer.Option("--state", metavar="STATE", help="Only runs in this state, for example TIMEOUT.")
    ] = None,
    reason: Annotated[
        str | None,
        typer.Option("--reason", metavar="TEXT", help="Only runs whose reason has this text (see sweep status)."),
    ] = None,
    exclude: Annotated[
        list[str] | None,
        typer.Option(
            "--exclude", metavar="NODE", help="Leave out a node, or several: node17, node[17-19]. Can be repeated."
        ),
    ] = None,
    time: Annotated[
        str | None, typer.Option("--time", metavar="TIME", help="Another time limit: MM, HH:MM:SS or D-HH:MM:SS.")
    ] = None,
    memory_gb_per_gpu: Annotated[
        float | None, typer.Option("--memory-gb-per-gpu", metavar="GB", help="Another amount of memory for each rank.")
    ] = None,
    partition: Annotated[str | None, typer.Option("--partition", metavar="NAME", help="Another partition.")] = None,
    sweep: OfSweep = None,
    cluster: OfCluster = None,
    root: Root = None,
) -> None:
    """Send failed and cancelled runs again: those that you name, or all. They resume from their last checkpoint.

    A changed request, such as --time, holds for these jobs. Later submissions use the request of the sweep again.
    """
    from jobs.planning.request_changes import RequestChanges
    from jobs.storage.sweep_folder import find_folder
    from jobs.submission.failed_runs import FailedRuns, failed_state
    from jobs.submission.resend import resend

    only = FailedRuns(None if state is None else failed_state(state), reason)
    changes = RequestChanges(tuple(exclude or ()), time, memory_gb_per_gpu, partition)
    folder = find_folder(sweeps_root(root), sweep, cluster)
    resend(folder, run or (), from_start=False, only=only, changes=changes)


def rerun(run: RunNames = None, sweep: OfSweep = None, cluster: OfCluster = None, root: Root = None) -> None:
    """Send runs again from the beginning, although they are done.

    The files of the earlier result move to earlier/ in the folder of the run.
    """
    from jobs.storage.sweep_folder import find_folder
    from jobs.submission.resend import resend

    if not run:
        raise UserError("sweep rerun needs the runs", hint="sweep status shows their labels")
    resend(find_folder(sweeps_root(root), sweep, cluster), run, from_start=True)
