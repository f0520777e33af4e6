"""`sweep prefetch`: fetches what the runs of a sweep read, before they need it."""

from __future__ import annotations

from typing import Annotated

import typer

from disttrain.errors import UserError
from jobs.cli.options import Assignments, ClusterName, Overrides, Root, SweepFile
from jobs.cli.shared import all_assignments, plan_sweep


def prefetch(
    file: SweepFile,
    assignments: Assignments = None,
    cluster: ClusterName = None,
    set_: Overrides = None,
    root: Root = None,
    here: Annotated[
        bool,
        typer.Option(
            "--here", help="Fetch by a process on this host, for sites whose compute nodes do not reach the hub."
        ),
    ] = False,
    partition: Annotated[
        str | None,
        typer.Option("--partition", metavar="NAME", help="The partition of the job, without the profile's constraint."),
    ] = None,
    time: Annotated[
        str | None, typer.Option("--time", metavar="TIME", help="The time limit of the job. Default: the profile's.")
    ] = None,
    update: Annotated[
        bool, typer.Option("--update", help="Fetch and pin the newest revisions in place of the pinned ones.")
    ] = False,
) -> None:
    """Fetch each model and dataset of the runs once, encode them for the cache, and pin their revisions.

    A job without GPUs does it, or with --here and --cluster local a process on this host. Runs that are submitted
    later do not ask the hub.
    """
    from jobs.planning.request_changes import RequestChanges
    from jobs.submission.prefetch import prefetch as fetch

    changes = RequestChanges(time=time, partition=partition)
    if here and str(changes):
        raise UserError(f"{changes} changes a job, and --here needs none", hint="leave one of them out")
    sweep, plan = plan_sweep(file, cluster, all_assignments(assignments, set_), root)
    fetch(plan, sweep, changes, here=here, update=update)
