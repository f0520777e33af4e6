"""`sweep forget`: removes runs that are no longer in the sweep file."""

from __future__ import annotations

import sys
import time
from typing import Annotated

import typer

from disttrain.errors import UserError
from jobs.cli.options import OfCluster, OfSweep, Root, RunNames
from jobs.cli.results_output import read_status
from jobs.cli.shared import sweeps_root

Yes = Annotated[bool, typer.Option("--yes", help="Do not ask.")]


def forget(
    run: RunNames = None, sweep: OfSweep = None, cluster: OfCluster = None, root: Root = None, yes: Yes = False
) -> None:
    """Remove dropped runs: those that are no longer in the sweep file, with their files.

    Without RUN, all such runs. A run that is queued or running is refused, and then nothing is removed.
    """
    from jobs.planning.plan import count_runs
    from jobs.slurm.states import JobPhase, State
    from jobs.storage.forget_runs import forget_runs, runs_to_forget
    from jobs.storage.ledger import submission_lock
    from jobs.storage.sweep_folder import find_folder

    folder = find_folder(sweeps_root(root), sweep, cluster)
    if not folder.is_owner():
        raise UserError(f"{str(folder.path)!r} belongs to another user", hint="only its owner can remove runs")
    with submission_lock(folder.path):
        status = read_status(folder)
        active = {
            row.run_id: row.state
            for row in status.results
            if row.phase is not JobPhase.FINISHED and row.state != State.NOT_SUBMITTED
        }
        run_ids = runs_to_forget(folder.planned_runs(), run or (), active)
        if not run_ids:
            print(f"nothing to forget: all runs of {folder.sweep_name} on {folder.cluster_name} are in the sweep file")
            return
        lines = [f"{row.name}  {row.state}" for row in status.results if row.run_id in run_ids]
        if not yes and not _confirm(lines):
            print("nothing was removed")
            return
        forget_runs(folder, run_ids, time.time())
    print(f"removed {count_runs(len(run_ids))}")


def _confirm(lines: list[str]) -> bool:
    """Lists the runs, and asks whether to remove them.

    Raises:
        UserError: No one can answer.
    """
    if not sys.stdin.isatty():
        raise UserError("sweep forget asks before it removes runs, and stdin is not a terminal", hint="add --yes")
    print(*lines, sep="\n")
    return typer.confirm("Remove these runs, with their records, checkpoints and logs?")
