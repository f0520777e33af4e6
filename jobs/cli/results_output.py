"""Output that several commands share: the status with its notices, the results as table, JSON and exit status."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import typer

from jobs.cli.shared import stderr_console, table_console

# All other imports are inside the functions, so `sweep --help` loads almost nothing.
if TYPE_CHECKING:
    from collections.abc import Sequence

    from jobs.results.result import Result
    from jobs.results.status import Status
    from jobs.storage.sweep_folder import SweepFolder


def read_status(folder: SweepFolder) -> Status:
    """The status of a sweep, after its notices are printed on stderr."""
    from jobs.results.status import read_status

    current = read_status(folder, os.environ)
    for notice in current.notices:
        stderr_console().print(f"note: {notice}", markup=False, highlight=False, soft_wrap=True)
    return current


def print_results(results: Sequence[Result], folder: SweepFolder, *, as_json: bool = False) -> None:
    """Prints the results: as JSON, or the table and the reasons of failures."""
    from rich.console import Console

    from jobs.results.tables import failure_lines, results_report, to_json

    if as_json:
        print(to_json(results, folder.sweep_name, folder.cluster_name), end="")
        return
    console, width = Console(), None
    if console.is_terminal or os.environ.get("COLUMNS", "").isdigit():
        width = console.width
    console = table_console()
    for part in results_report(results, f"{folder.sweep_name} on {folder.cluster_name}", width):
        console.print(part, markup=False, highlight=False)
    for line in failure_lines(results, folder):
        console.print(line, markup=False, highlight=False)


def exit_if_failed(results: Sequence[Result]) -> None:
    """Exits with status 1 if a run that the sweep file still has ended without success."""
    from jobs.slurm.states import JobPhase, State

    present = [row for row in results if not row.dropped]
    if any(row.phase is JobPhase.FINISHED and row.state is not State.COMPLETED for row in present):
        raise typer.Exit(1)
