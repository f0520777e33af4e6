"""`sweep clean`: lists the files that no run needs any more, and removes those that are chosen."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Annotated

import typer

from disttrain.errors import UserError
from jobs.cli.options import OfCluster, Root, SubmittedSweep, Yes
from jobs.cli.results_output import read_status
from jobs.cli.shared import sweeps_root, table_console

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jobs.storage.removable import Removable
    from jobs.storage.sweep_folder import SweepFolder


def clean(
    sweep: SubmittedSweep = None,
    checkpoints: Annotated[
        bool, typer.Option("--checkpoints", help="Remove checkpoints of runs that are done or dropped.")
    ] = False,
    models: Annotated[bool, typer.Option("--models", help="Remove their trained models.")] = False,
    leftovers: Annotated[
        bool,
        typer.Option("--leftovers", help="Remove what failed submissions, forgotten runs and killed commands left."),
    ] = False,
    every: Annotated[
        bool, typer.Option("--all", help="Remove checkpoints and leftovers. Models need --models.")
    ] = False,
    cluster: OfCluster = None,
    root: Root = None,
    yes: Yes = False,
) -> None:
    """List what can be removed from the folder of a sweep, with its size. Without an option, nothing is removed.

    Runs that wait, run or can resume keep all their files. Records, summaries and the list of submissions always stay,
    and so do the files of your own scripts.
    """
    from jobs.results.text_table import binary_size
    from jobs.storage.forget_runs import remove, remove_copy
    from jobs.storage.ledger import submission_lock
    from jobs.storage.removable import Kind
    from jobs.storage.sweep_folder import find_folder

    folder = find_folder(sweeps_root(root), sweep, cluster)
    named = {Kind.CHECKPOINTS: checkpoints or every, Kind.MODELS: models, Kind.LEFTOVERS: leftovers or every}
    kinds = [kind for kind, is_named in named.items() if is_named]
    if kinds and not folder.is_owner():
        raise UserError(f"{str(folder.path)!r} belongs to another user", hint="only its owner can remove files")
    found = _find(folder)
    _print_list(folder, found)
    if not (kinds and found):
        return
    chosen = [item for item in found if item.kind in kinds]
    if not chosen:
        print(f"nothing was removed: there are no {' or '.join(kinds)}")
        return
    size = binary_size(sum(item.size_bytes for item in chosen))
    if not yes and not _confirm(f"Remove {' and '.join(kinds)}, {size}?"):
        print("nothing was removed")
        return
    with submission_lock(folder.path):
        # In the meantime another command may have sent a run again.
        present = {path for item in _find(folder) if item.kind in kinds for path in item.paths}
        paths = [path for item in chosen for path in item.paths]
        if not present.issuperset(paths):
            raise UserError("the runs have changed in the meantime; nothing was removed", hint="try again")
        for path in paths:
            if path.parent == folder.code_store:
                remove_copy(folder, path)
            else:
                remove(path)
    print(f"removed {size}")


def _find(folder: SweepFolder) -> list[Removable]:
    """What can be removed, by kind, and the largest first.

    Raises:
        UserError: It is not known which runs have ended.
    """
    from disttrain.config.command.command_config import is_command
    from jobs.results.run_records import is_complete
    from jobs.storage.ledger import read_ledger
    from jobs.storage.removable import Kind, leftovers, of_runs

    status = read_status(folder)
    if not status.is_current:
        raise UserError("without an answer of sacct, jobs may still be running; nothing was removed", hint="try again")
    ledger = read_ledger(folder.path)
    ended, unneeded = {}, set()
    for row in status.results:
        # A submission removes the summary of a run before it sends it: with one, the job of the run has ended.
        is_sent = row.run_id in ledger.unconfirmed and not is_complete(folder.run(row.run_id))
        if row.state.is_finished and not is_sent and not ledger.damaged_lines:
            ended[row.run_id] = f"{row.name}, dropped" if row.dropped else row.name
            if row.state.is_success or row.dropped:
                unneeded.add(row.run_id)
    planned = folder.planned_runs()
    scripts = {run["run_id"] for run in planned if is_command(run)}
    found = [*of_runs(folder, ended, unneeded, scripts), *leftovers(folder, planned, ledger, time.time())]
    return sorted(found, key=lambda item: (list(Kind).index(item.kind), -item.size_bytes))


def _print_list(folder: SweepFolder, found: Sequence[Removable]) -> None:
    """Prints what can be removed, then each kind with its size and its option."""
    from jobs.results.text_table import TextColumn, TextTable, binary_size
    from jobs.storage.removable import Kind

    plan = folder.plan()
    if not found:
        print(f"{plan.sweep} on {plan.cluster}: nothing can be removed")
        return
    columns = (
        TextColumn("kind", [item.kind for item in found]),
        TextColumn("size", [binary_size(item.size_bytes) for item in found], is_right=True),
        TextColumn("of", [item.name for item in found]),
    )
    print(f"{plan.sweep} on {plan.cluster}: {binary_size(sum(item.size_bytes for item in found))} can be removed")
    table_console().print(TextTable(columns, [""] * len(found)), markup=False, highlight=False, crop=False)
    for kind in Kind:
        if sizes := [item.size_bytes for item in found if item.kind is kind]:
            print(f"--{kind} removes {binary_size(sum(sizes))}")


def _confirm(question: str) -> bool:
    """Asks whether to remove the files.

    Raises:
        UserError: No one can answer.
    """
    if not sys.stdin.isatty():
        raise UserError("sweep clean asks before it removes files, and stdin is not a terminal", hint="add --yes")
    return typer.confirm(question)
