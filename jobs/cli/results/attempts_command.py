"""`sweep attempts`: every attempt of a run, over all its jobs."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from jobs.cli.options import Json, OfCluster, OfSweep, Root, RunName
from jobs.cli.shared import print_json, stderr_console, sweeps_root, table_console

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from jobs.results.run_attempts import RunAttempt
    from jobs.storage.sweep_folder import SweepFolder


def attempts(
    run: RunName, sweep: OfSweep = None, cluster: OfCluster = None, root: Root = None, json_: Json = False
) -> None:
    """List every attempt of a run, over all its jobs: times, nodes, GPU-hours, steps, and steps that were lost.

    A requeue is a new attempt of the same job. The steps are those that the run has logged since it was last sent.
    """
    from jobs.planning.labels import Variation
    from jobs.results.run_attempts import attempts_json, attempts_table
    from jobs.storage.run_lookup import find_runs
    from jobs.storage.sweep_folder import find_folder

    folder = find_folder(sweeps_root(root), sweep, cluster)
    planned = folder.planned_runs()
    (found,) = find_runs(planned, [run])
    listed = _read_attempts(folder, found)
    if json_:
        print_json(attempts_json(listed))
    elif listed:
        table_console().print(attempts_table(listed), crop=False)
    else:
        print(f"no attempt of {Variation(planned).name(found)} is known")


def _read_attempts(folder: SweepFolder, run: Mapping[str, Any]) -> tuple[RunAttempt, ...]:
    """The attempts of a run as the scheduler knows them now, or was last seen to know them."""
    from disttrain.records.lifecycle.attempt_log import read_attempts
    from jobs.results.collect import all_attempts
    from jobs.results.run_attempts import run_attempts
    from jobs.schedulers.states import read_states, scheduler_for
    from jobs.storage.ledger import read_ledger

    plan, ledger, run_id = folder.plan(), read_ledger(folder.path), run["run_id"]
    states = read_states(folder, plan.sweep, scheduler_for(plan.kind, os.environ), ledger, [run_id])
    for text in (*states.damage, *states.answers.notices):
        stderr_console().print(f"note: {text}", markup=False, highlight=False, soft_wrap=True)
    conclusion = states.conclusions[run_id]
    rows = all_attempts(ledger.jobs.get(run_id, ()), states.answers.attempts, conclusion)
    return run_attempts(rows, read_attempts(folder.run(run_id)), conclusion.state, run["world_size"])
