"""`sweep status`, `collect` and `figures`: states, measurements and figures of submitted runs."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from disttrain.errors import UserError
from jobs.cli.options import OfCluster, Root, SubmittedSweep
from jobs.cli.shared import exit_status, print_results, read_status, sweeps_root


class Format(StrEnum):
    csv = "csv"
    json = "json"


def status(
    sweep: SubmittedSweep = None,
    cluster: OfCluster = None,
    root: Root = None,
    json_: Annotated[bool, typer.Option("--json", help="Print every column as JSON.")] = False,
) -> None:
    """Show the state of every run.

    The exit status is 1 if a run has ended without success.
    """
    from jobs.results.tables import to_json
    from jobs.storage.sweep_folder import find_folder

    folder = find_folder(sweeps_root(root), sweep, cluster)
    current = read_status(folder)
    if json_:
        print(to_json(current.results, folder.sweep_name, folder.cluster_name), end="")
        raise typer.Exit(exit_status(current.results))
    print_results(current.results, folder)


def collect(
    sweep: SubmittedSweep = None,
    cluster: OfCluster = None,
    root: Root = None,
    format_: Annotated[
        Format | None, typer.Option("--format", metavar="csv|json", help="Print all columns in this format.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            metavar="FILE",
            help="Write all columns to FILE: as JSON for *.json, as CSV for *.csv, or in the format of --format.",
        ),
    ] = None,
) -> None:
    """Collect states and measurements of all runs into one table.

    The command also writes results.csv to the sweep's folder. The exit status is 1 if a run has ended without
    success.
    """
    from disttrain.records.atomic_write import write_text
    from jobs.results.tables import to_csv, to_json
    from jobs.storage.sweep_folder import find_folder

    folder = find_folder(sweeps_root(root), sweep, cluster)
    if output is not None:
        _check_output(output, format_)
    current = read_status(folder)
    table = to_csv(current.results)
    if folder.is_owner():
        write_text(folder.results_file, table)
    if format_ is None and output is not None and output.suffix == ".json":
        format_ = Format.json
    text = table
    if format_ is Format.json:
        text = to_json(current.results, folder.sweep_name, folder.cluster_name)
    if output is not None:
        _write_output(output, text)
        print(f"wrote {output}")
    elif format_ is not None:
        print(text, end="")
        raise typer.Exit(exit_status(current.results))
    print_results(current.results, folder)


def _check_output(output: Path, format_: Format | None) -> None:
    if format_ is None and output.suffix not in ("", ".csv", ".json"):
        message = f"{str(output)!r} ends with {output.suffix!r}, and the table is written as CSV or JSON"
        raise UserError(message, where="-o", hint="use .csv or .json, or add --format")
    reason = None
    if output.is_dir():
        reason = "it is a folder"
    elif not output.parent.is_dir():
        reason = "its folder does not exist"
    if reason:
        raise UserError(f"{str(output)!r} cannot be written: {reason}", where="-o")


def _write_output(output: Path, text: str) -> None:
    from disttrain.records.atomic_write import write_text

    if output.is_symlink() or (output.exists() and not output.is_file()):
        output.write_text(text, encoding="utf-8")  # for example /dev/stdout, which a file must not replace
    else:
        write_text(output, text)


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
    run: Annotated[str | None, typer.Option("--run", metavar="RUN_ID", help="Draw only this run.")] = None,
    step: Annotated[
        int | None, typer.Option("--step", min=1, metavar="N", help="Step of the timelines. Default: the median step.")
    ] = None,
) -> None:
    """Draw timelines of a step, and bandwidth of links.

    A timeline needs a run with detailed_timing, a bandwidth figure needs a run of model link (measure_link).
    """
    from jobs.results.figures import write_figures
    from jobs.storage.sweep_folder import find_folder

    for path in write_figures(find_folder(sweeps_root(root), sweep, cluster), output, run, step):
        print(f"wrote {path}")
