"""Output that several commands share: the status with its notices, the results as table, JSON and exit status."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

import typer

from disttrain.errors import UserError
from jobs.cli.shared import stderr_console, table_console

# All other imports are inside the functions, so `sweep --help` loads almost nothing.
if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from jobs.results.result import Result
    from jobs.results.status import Status
    from jobs.storage.sweep_folder import SweepFolder

_NOTIFY_TIMEOUT_S = 5.0  # a command does not wait long for an address that does not answer
_PIPE_HEIGHT = 40  # the lines of a screen, where the output is a log or a pipe


def read_status(folder: SweepFolder) -> Status:
    """The status of a sweep, after its notices are printed on stderr."""
    import gc

    from jobs.results.status import read_status

    # A sweep of 10,000 runs is a million objects that live until the end. To search them for garbage takes a tenth.
    gc.set_threshold(50_000, 20, 100)
    current = read_status(folder, os.environ)
    print_notices(current)
    return current


def follow_status(folder: SweepFolder) -> Status:
    """The status of a sweep after its submitted runs have ended, and its notices on stderr; until then a live screen.

    Raises:
        UserError: The output is no terminal.
    """
    from rich.console import Console

    from jobs.results.live.live_status import follow
    from jobs.results.status import submitted_runs

    console = Console()
    if not sys.stdout.isatty() or console.is_dumb_terminal:
        hint = "sweep wait prints a line for each change, sweep status the states now"
        raise UserError("the output is no terminal", where="--watch", hint=hint)
    current = follow(folder, submitted_runs(folder), console, os.environ)
    print_notices(current)
    return current


def print_notices(current: Status) -> None:
    """Prints the notices of a status on stderr."""
    for notice in current.notices:
        stderr_console().print(f"note: {notice}", markup=False, highlight=False, soft_wrap=True)


def print_results(
    results: Sequence[Result], folder: SweepFolder, *, as_json: bool = False, all_runs: bool = True
) -> None:
    """Prints the results.

    Args:
        results: The rows.
        folder: The folder of the sweep.
        as_json: Whether to print JSON instead of the table and the reasons of failures.
        all_runs: Whether to print every run. Otherwise runs that do not fit on the screen are counted, and only those
            that run, failed or need the user are named.
    """
    from rich.console import Console

    from jobs.results.failures.failure_pattern import failure_patterns
    from jobs.results.overview import overview
    from jobs.results.tables import failure_lines, results_report, to_json

    plan = folder.plan()
    if as_json:
        print(to_json(results, plan.sweep, plan.cluster), end="")
        return
    console, width, height = Console(), None, _PIPE_HEIGHT
    if console.is_terminal or os.environ.get("COLUMNS", "").isdigit():
        width = console.width
    if console.is_terminal:
        height = console.height
    console = table_console()
    title = f"{plan.sweep} on {plan.cluster}"
    patterns = failure_patterns(results)
    if not all_runs and len(results) > height:
        print(*overview(results, folder, title, width, height - len(patterns)), *patterns, sep="\n")
        return
    for part in results_report(results, title, width):
        console.print(part, markup=False, highlight=False, crop=False)
    for lines in failure_lines(results, folder):
        print(*lines, sep="\n")
    for line in patterns:
        print(line)


def print_ended(folder: SweepFolder, run_ids: Collection[str], *, as_json: bool) -> None:
    """Prints the results after a wait. The exit status is 1 if one of the awaited runs ended without success."""
    results = read_status(folder).results
    notify_of(folder, results)
    print_results(results, folder, as_json=as_json)
    exit_if_failed([row for row in results if row.run_id in run_ids])


def notify_of(folder: SweepFolder, results: Sequence[Result]) -> None:
    """Sends the notifications that the runs could not send, for example because Slurm has killed the last one."""
    from jobs.submission.notification import ends_by_results, notify, target_of

    if target_of(folder) is not None:
        notify(folder, ends_by_results(results), os.environ, timeout_s=_NOTIFY_TIMEOUT_S)


def exit_if_failed(results: Sequence[Result]) -> None:
    """Exits with status 1 if a run that the sweep file still has ended without success."""
    from jobs.slurm.states import JobPhase, State

    present = [row for row in results if not row.dropped]
    if any(row.phase is JobPhase.FINISHED and row.state is not State.COMPLETED for row in present):
        raise typer.Exit(1)
