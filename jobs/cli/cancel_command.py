"""`sweep cancel`: ends runs, and keeps them from being sent again."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from disttrain.errors import UserError
from jobs.cli.options import OfCluster, OfSweep, Root, RunNames, Yes
from jobs.cli.shared import sweeps_root


def cancel(
    run: RunNames = None,
    every: Annotated[bool, typer.Option("--all", help="Cancel every run that has not ended.")] = False,
    dropped: Annotated[
        bool, typer.Option("--dropped", help="Cancel the runs that are no longer in the sweep file.")
    ] = False,
    sweep: OfSweep = None,
    cluster: OfCluster = None,
    root: Root = None,
    yes: Yes = False,
) -> None:
    """Cancel runs that wait, run, or were not sent yet.

    A cancelled run is not submitted again, until sweep retry or sweep rerun sends it.
    """
    from jobs.planning.plan import count_runs
    from jobs.storage.sweep_folder import find_folder
    from jobs.submission.cancellation import cancel_runs, choose

    if bool(run) + every + dropped != 1:
        hint = "sweep status shows their labels"
        raise UserError("sweep cancel needs either runs, or --all, or --dropped", hint=hint)
    folder = find_folder(sweeps_root(root), sweep, cluster)
    chosen = choose(folder, run or (), every=every, dropped=dropped)
    for line in chosen.ended if run else ():
        print(f"{line}: it has ended already")
    if not chosen.active:
        print("nothing was cancelled: all of these runs have ended" if run or every else "no dropped run is active")
        return
    if every and not yes:
        if not sys.stdin.isatty():
            raise UserError("sweep cancel --all asks first, and stdin is not a terminal", hint="add --yes")
        if not typer.confirm(f"Cancel {count_runs(len(chosen.active))} of {folder.plan().sweep}?"):
            print("nothing was cancelled")
            return
    cancel_runs(folder, chosen.active)
