"""`sweep status` and `figures`: states and figures of submitted runs."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from jobs.cli.options import Check, Json, OfCluster, Root, SubmittedSweep
from jobs.cli.results_output import exit_if_failed, follow_status, notify_of, print_results, read_status
from jobs.cli.shared import sweeps_root


def status(
    sweep: SubmittedSweep = None,
    cluster: OfCluster = None,
    root: Root = None,
    json_: Json = False,
    all_runs: Annotated[
        bool, typer.Option("--all-runs", help="Show every run, also if they do not fit on the screen.")
    ] = False,
    watch: Annotated[
        bool, typer.Option("--watch", help="Follow the runs on the screen until they have ended; needs a terminal.")
    ] = False,
    check: Check = False,
) -> None:
    """Show the states of the runs: first the counts, then the table.

    If the runs do not fit on the screen, only those that run, failed or need attention are named after the counts.
    """
    from jobs.storage.sweep_folder import find_folder
    from jobs.submission.recovery import recover

    folder = find_folder(sweeps_root(root), sweep, cluster)
    recover(folder, os.environ)
    current = follow_status(folder) if watch else read_status(folder)
    results = current.results
    notify_of(folder, results)
    print_results(results, folder, as_json=json_, all_runs=all_runs)
    if check:
        exit_if_failed(results)


def figures(
    sweep: SubmittedSweep = None,
    cluster: OfCluster = None,
    root: Root = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o", "--output", metavar="FOLDER", help="Folder of the figures. Default: figures/ in the sweep's folder."
        ),
    ] = None,
    run: Annotated[
        str | None, typer.Option("--run", metavar="RUN", help="Draw only this run: an id, its start, or a label.")
    ] = None,
    step: Annotated[
        int | None, typer.Option("--step", min=1, metavar="N", help="Step of the timelines. Default: the median step.")
    ] = None,
) -> None:
    """Draw timelines of a step, and bandwidth of links.

    A timeline needs a run with detailed_timing, a bandwidth figure needs a run of model link (measure_link).
    """
    from jobs.results.drawing.figures import write_figures
    from jobs.storage.sweep_folder import find_folder

    def say(note: str) -> None:
        print(f"note: {note}", file=sys.stderr)

    for path in write_figures(find_folder(sweeps_root(root), sweep, cluster), output, run, step, say):
        print(f"wrote {path}")
