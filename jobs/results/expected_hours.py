"""The GPU-hours that the runs of a plan are expected to take, from earlier runs of the same config."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from disttrain.config.command.command_config import is_command
from disttrain.config.run_id import NOT_IDENTITY
from disttrain.records.json_values import DamagedFile
from jobs.results.run_attempts import gpu_hours
from jobs.schedulers.states import last_states, scheduler_for
from jobs.slurm.attempts import attempts_of
from jobs.slurm.states import State
from jobs.storage.ledger import read_ledger
from jobs.storage.sweep_folder import SweepFolder


def expected_hours(
    runs: Sequence[Mapping[str, Any]], earlier: Sequence[Mapping[str, Any]], measured: Mapping[str, float]
) -> dict[str, float]:
    """The expected GPU-hours of runs, by id; a run without an earlier one of its config is missing.

    A run that was done before has its own hours. Any other has the mean of those that differ from it in the seed only,
    or in fields that cannot change results.

    Args:
        runs: The runs, as `plan.run_json` has them.
        earlier: The runs of earlier submissions, likewise.
        measured: The GPU-hours of those of them that are done, by run id.
    """
    alike: dict[str, list[float]] = {}
    for run in earlier:
        if run["run_id"] in measured:
            alike.setdefault(_without_seed(run), []).append(measured[run["run_id"]])
    means = {config: statistics.fmean(hours) for config, hours in alike.items()}
    expected = {run["run_id"]: measured.get(run["run_id"], means.get(_without_seed(run))) for run in runs}
    return {run_id: hours for run_id, hours in expected.items() if hours is not None}


def _without_seed(run: Mapping[str, Any]) -> str:
    """The allocation and the config of a run as a text, without what does not change its duration much."""
    left_out = {"seed"} if is_command(run) else {"seed", *NOT_IDENTITY}
    values = {name: value for name, value in run["train"].items() if name not in left_out}
    return json.dumps([run["allocation"], values], sort_keys=True)


def measured_hours(folder: SweepFolder) -> dict[str, float]:
    """The GPU-hours of each run that is done, by run id, as the accounting was last seen.

    A run with several jobs is left out: how much of an earlier job the latest one has repeated is not known. Nothing
    is asked of the scheduler. A folder that does not exist, or that is damaged, has none.
    """
    try:
        plan, ledger = folder.plan(), read_ledger(folder.path)
    except (DamagedFile, OSError):
        return {}
    gpus = {run["run_id"]: run["world_size"] for run in plan.runs if len(ledger.jobs.get(run["run_id"], ())) == 1}
    if not gpus:
        return {}
    states = last_states(folder, plan.sweep, scheduler_for(plan.kind, {}), ledger, list(gpus))
    hours = {}
    for run_id, conclusion in states.conclusions.items():
        attempts = attempts_of(ledger.jobs[run_id][-1].job_id, states.answers.attempts)
        if conclusion.state is State.COMPLETED and attempts:
            hours[run_id] = sum(gpu_hours(attempt, gpus[run_id]) for attempt in attempts)
    return hours
