"""`sweep forget`: removes runs with all their files."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any

import typer

from disttrain.errors import UserError
from jobs.cli.options import OfCluster, OfSweep, Root, RunNames, Yes
from jobs.cli.results_output import read_status
from jobs.cli.shared import sweeps_root

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from jobs.storage.sweep_folder import SweepFolder


def forget(
    run: RunNames = None, sweep: OfSweep = None, cluster: OfCluster = None, root: Root = None, yes: Yes = False
) -> None:
    """Remove runs with all their files: those that are no longer in the sweep file, or those that you name.

    A run that is queued or running is refused, and then nothing is removed.
    """
    from jobs.planning.plan import count_runs
    from jobs.storage.forget_runs import forget_runs
    from jobs.storage.ledger import submission_lock
    from jobs.storage.name_links import link_names_or_warn
    from jobs.storage.sweep_folder import find_folder

    folder = find_folder(sweeps_root(root), sweep, cluster)
    if not folder.is_owner():
        raise UserError(f"{str(folder.path)!r} belongs to another user", hint="only its owner can remove runs")
    chosen, lines = _chosen(folder, run or ())
    if not chosen:
        plan = folder.plan()
        print(f"nothing to forget: no run of {plan.sweep} on {plan.cluster} is dropped")
        return
    if not yes and not _confirm(lines):
        print("nothing was removed")
        return
    with submission_lock(folder.path):
        # In the meantime another process may have submitted them again.
        if _chosen(folder, run or ())[0] != chosen:
            raise UserError("the runs have changed since the question; nothing was removed", hint="try again")
        forget_runs(folder, [entry["run_id"] for entry in chosen], time.time())
        link_names_or_warn(folder)
    print(f"removed {count_runs(len(chosen))}")


def _chosen(folder: SweepFolder, texts: Sequence[str]) -> tuple[list[Mapping[str, Any]], list[str]]:
    """The runs to remove, as plan.json has them, and a line for each.

    Raises:
        UserError: A job of one of them has not ended, or may not have.
    """
    from jobs.results.run_records import is_complete
    from jobs.slurm.states import JobPhase, State
    from jobs.storage.forget_runs import runs_to_forget
    from jobs.storage.ledger import read_ledger

    status = read_status(folder)
    if not status.is_current:
        raise UserError("without an answer of sacct, jobs may still be running; nothing was removed", hint="try again")
    active = {
        row.run_id: row.state.value
        for row in status.results
        if row.phase is not JobPhase.FINISHED and row.state is not State.NOT_SUBMITTED
    }
    # A submission removes the summary of a run before it sends it: with one, the job of the run has ended.
    unconfirmed = read_ledger(folder.path).unconfirmed
    unfinished = [run_id for run_id in unconfirmed if not is_complete(folder.run(run_id))]
    active |= dict.fromkeys(unfinished, "in an interrupted submission")
    chosen = runs_to_forget(folder.planned_runs(), texts, active)
    rows = {row.run_id: row for row in status.results}
    lines = []
    for entry in chosen:
        row = rows[entry["run_id"]]
        line = f"{row.name}  {row.state}"
        if not row.dropped:
            line += "  (in the sweep file: sweep submit runs it again)"
        lines.append(line)
    return chosen, lines


def _confirm(lines: list[str]) -> bool:
    """Lists the runs, and asks whether to remove them.

    Raises:
        UserError: No one can answer.
    """
    if not sys.stdin.isatty():
        raise UserError("sweep forget asks before it removes runs, and stdin is not a terminal", hint="add --yes")
    print(*lines, sep="\n")
    return typer.confirm("Remove these runs, with their records, checkpoints and logs?")
