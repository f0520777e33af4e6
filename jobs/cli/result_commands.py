"""`sweep status`, `collect` and `figures`: states, measurements and figures of submitted runs."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from disttrain.errors import UserError
from jobs.cli.options import Check, Json, OfCluster, Root, SubmittedSweep
from jobs.cli.results_output import exit_if_failed, follow_status, notify_of, print_results, read_status
from jobs.cli.shared import sweeps_root

if TYPE_CHECKING:
    from jobs.results.status import Status
    from jobs.storage.sweep_folder import SweepFolder


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


def collect(
    sweep: SubmittedSweep = None,
    cluster: OfCluster = None,
    root: Root = None,
    json_: Json = False,
    csv: Annotated[bool, typer.Option("--csv", help="Print every column as CSV.")] = False,
    all_columns: Annotated[
        bool, typer.Option("--all-columns", help="Add the config fields that are equal in all runs to the CSV.")
    ] = False,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            metavar="FILE",
            help="Write every column to FILE: as JSON for *.json or with --json, else as CSV.",
        ),
    ] = None,
    check: Check = False,
) -> None:
    """Collect states and measurements of all runs into one table.

    The command also writes results.csv to the sweep's folder.
    """
    from jobs.results.tables import to_csv, to_json
    from jobs.storage.sweep_folder import find_folder

    if json_ and csv:
        raise UserError("--json and --csv are both given", hint="choose one")
    folder = find_folder(sweeps_root(root), sweep, cluster)
    as_json = json_ or (output is not None and output.suffix == ".json" and not csv)
    if all_columns and (as_json or not (csv or output)):
        raise UserError("--all-columns needs --csv or -o FILE.csv", hint="JSON has every field under config")
    if output is not None:
        _check_output(output, json_ or csv)
    current = read_status(folder)
    results = current.results
    _save_results(folder, current)
    if output is not None:
        text = to_csv(results, all_columns=all_columns)
        if as_json:
            plan = folder.plan()
            text = to_json(results, plan.sweep, plan.cluster)
        _write_output(output, text)
        print(f"wrote {output}")
    if csv and output is None:
        print(to_csv(results, all_columns=all_columns), end="")
    else:
        print_results(results, folder, as_json=json_ and output is None)
    if check:
        exit_if_failed(results)


def _save_results(folder: SweepFolder, current: Status) -> None:
    """Writes results.csv. To collect, the folder only needs to be read: if that fails, a note says so."""
    from disttrain.records.atomic_write import write_text
    from jobs.results.tables import to_csv

    if not folder.is_owner():
        return
    try:
        write_text(folder.results_file, to_csv(current.results))
    except OSError as error:
        if current.is_saved:  # otherwise a notice of the status has said it
            print(f"note: what was seen could not be saved: {error.filename}: {error.strerror}", file=sys.stderr)


def _check_output(output: Path, format_given: bool) -> None:
    if not format_given and output.suffix not in ("", ".csv", ".json"):
        message = f"{str(output)!r} ends with {output.suffix!r}, and the table is written as CSV or JSON"
        raise UserError(message, where="-o", hint="use .csv or .json, or add --csv or --json")
    reason = None
    if output.is_dir():
        reason = "it is a folder"
    elif not output.parent.is_dir():
        reason = "its folder does not exist"
    if reason:
        raise UserError(f"{str(output)!r} cannot be written: {reason}", where="-o")


def _write_output(output: Path, text: str) -> None:
    from disttrain.records.atomic_write import write_text

    try:
        if output.is_symlink() or (output.exists() and not output.is_file()):
            # For example /dev/stdout, which a file must not replace.
            output.write_text(text, encoding="utf-8", errors="backslashreplace")
        else:
            write_text(output, text)
    except OSError as error:
        raise UserError(f"{str(output)!r} cannot be written: {error.strerror}", where="-o") from None


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
