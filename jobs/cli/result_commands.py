"""`sweep status`, `collect` and `figures`: what became of the runs."""

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
    """Show the state of every run, from one call of sacct."""
    from jobs.results.tables import to_json
    from jobs.storage.sweep_folder import find_folder

    folder = find_folder(sweeps_root(root), sweep, cluster)
    found = read_status(folder)
    if json_:
        print(to_json(found.results, folder.sweep_name, folder.cluster_name), end="")
        raise typer.Exit(exit_status(found.results))
    print_results(found.results, folder)


def collect(
    sweep: SubmittedSweep = None,
    cluster: OfCluster = None,
    root: Root = None,
    format_: Annotated[Format | None, typer.Option("--format", help="Print this instead of the table.")] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="FILE", help="Write there, as its suffix or --format says.")
    ] = None,
) -> None:
    """Join accounting and records into one table."""
    from disttrain.records.atomic_write import write_text
    from jobs.results.tables import to_csv, to_json
    from jobs.storage.sweep_folder import find_folder

    folder = find_folder(sweeps_root(root), sweep, cluster)
    if output is not None and (output.is_dir() or not output.parent.is_dir()):
        why = "it is a folder" if output.is_dir() else "its folder is not there"
        raise UserError(f"{str(output)!r} cannot be written: {why}", where="-o")
    found = read_status(folder)
    if folder.is_owner():
        write_text(folder.results_file, to_csv(found.results))
    json_wanted = format_ is Format.json or (format_ is None and output is not None and output.suffix == ".json")
    text = to_json(found.results, folder.sweep_name, folder.cluster_name) if json_wanted else to_csv(found.results)
    if output is not None:
        if output.is_symlink() or (output.exists() and not output.is_file()):
            output.write_text(text, encoding="utf-8")  # /dev/stdout, say, which must not be replaced by a file
        else:
            write_text(output, text)
        print(f"wrote {output}")
    elif format_ is not None:
        print(text, end="")
        raise typer.Exit(exit_status(found.results))
    print_results(found.results, folder)


def figures(
    sweep: SubmittedSweep = None,
    cluster: OfCluster = None,
    root: Root = None,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="FOLDER", help="Write there. Default: figures in the sweep's folder."),
    ] = None,
    run: Annotated[str | None, typer.Option("--run", metavar="RUN_ID", help="Of this run alone.")] = None,
    step: Annotated[
        int | None, typer.Option("--step", min=1, metavar="N", help="That a timeline shows. Default: the median one.")
    ] = None,
) -> None:
    """Draw a step's timeline of each run with detailed_timing, and a link's bandwidth."""
    from jobs.results.figures import write_figures
    from jobs.storage.sweep_folder import find_folder

    for path in write_figures(find_folder(sweeps_root(root), sweep, cluster), output, run, step):
        print(f"wrote {path}")
