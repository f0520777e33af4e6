"""`sweep export`: the records of runs as files of TensorBoard, wandb, trackio or mlflow."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from disttrain.errors import UserError
from jobs.cli.options import OfCluster, Root, SubmittedSweep
from jobs.cli.results_output import read_status
from jobs.cli.shared import sweeps_root

if TYPE_CHECKING:
    from jobs.exports.export import Exporter
    from jobs.exports.writer import Tool
    from jobs.slurm.states import State
    from jobs.storage.sweep_folder import SweepFolder


def export(
    to: Annotated[str, typer.Option("--to", metavar="TOOL", help="tensorboard, wandb, trackio or mlflow.")],
    sweep: SubmittedSweep = None,
    cluster: OfCluster = None,
    root: Root = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o", "--output", metavar="FOLDER", help="Folder of the files. Default: exports/TOOL in the sweep's folder."
        ),
    ] = None,
    run: Annotated[
        str | None, typer.Option("--run", metavar="RUN", help="Export only this run: an id, its start, or a label.")
    ] = None,
    follow: Annotated[bool, typer.Option("--follow", help="Export what is new until all runs have ended.")] = False,
    online: Annotated[bool, typer.Option("--online", help="Send to wandb's server; otherwise files only.")] = False,
    tracking_uri: Annotated[
        str | None, typer.Option("--tracking-uri", metavar="URI", help="Server of mlflow; otherwise files only.")
    ] = None,
) -> None:
    """Export steps, evaluations and telemetry to another tool, during the runs or after them.

    A later export adds only what is new.
    """
    from jobs.exports.export import Exporter, check_target
    from jobs.exports.writer import Target
    from jobs.planning.plan import count_runs
    from jobs.storage.run_lookup import find_runs
    from jobs.storage.sweep_folder import find_folder

    tool, folder = _tool(to), find_folder(sweeps_root(root), sweep, cluster)
    if output is None and not folder.is_owner():
        raise UserError(f"{str(folder.path)!r} belongs to another user", hint="write the files elsewhere: -o FOLDER")
    target = Target((output or folder.path / "exports" / tool).absolute(), online, tracking_uri)
    check_target(tool, target)
    planned = folder.planned_runs()
    exporter = Exporter(folder, tool, target, planned if run is None else find_runs(planned, [run]), _note)
    try:
        counts = _export(exporter, folder, follow=follow)
    finally:
        exporter.close()
    if not counts:
        raise UserError("no run has records to export", hint="sweep status shows their states; --follow waits for them")
    print(f"exported {sum(counts.values())} new points of {count_runs(len(counts))} to {tracking_uri or target.folder}")


def _tool(text: str) -> Tool:
    from jobs.exports.writer import Tool

    try:
        return Tool(text)
    except ValueError:
        raise UserError(f"{text!r} is none of {', '.join(Tool)}", where="--to") from None


def _export(exporter: Exporter, folder: SweepFolder, *, follow: bool) -> dict[str, int]:
    """The number of new points of each run, after one pass or until all runs have ended."""
    from jobs.schedulers.states import scheduler_for

    totals: dict[str, int] = {}
    while True:
        states = _states(folder)
        has_ended = not follow or all(states[run["run_id"]].is_finished for run in exporter.planned)
        for run_id, count in exporter.export(states, stays=not has_ended).items():
            totals[run_id] = totals.get(run_id, 0) + count
        if has_ended:
            return totals
        time.sleep(scheduler_for(folder.plan().kind, os.environ).poll_s)


def _states(folder: SweepFolder) -> dict[str, State]:
    return {row.run_id: row.state for row in read_status(folder).results}


def _note(text: str) -> None:
    print(f"note: {text}", file=sys.stderr)
