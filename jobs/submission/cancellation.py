"""Cancels runs: they end, and are not sent again before the user asks for it."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jobs.planning.labels import Variation
from jobs.planning.plan import count_runs
from jobs.schedulers.states import read_states, scheduler_for
from jobs.slurm.states import State
from jobs.storage import ledger
from jobs.storage.run_lookup import find_runs, list_names
from jobs.storage.sweep_folder import SweepFolder
from jobs.submission.launch import write_errors
from jobs.submission.messages import note, say
from jobs.submission.recovery import end_unneeded_smoke


@dataclass(frozen=True)
class Chosen:
    """The runs that a user wants to cancel: those that have not ended, and the names and states of the others."""

    active: list[Mapping[str, Any]]
    ended: list[str]


def choose(folder: SweepFolder, texts: Sequence[str], *, every: bool, dropped: bool) -> Chosen:
    """The runs to cancel. Runs that were never sent are among them.

    Args:
        folder: The folder of the sweep.
        texts: What the user typed for each run.
        every: Whether all runs are to be cancelled.
        dropped: Whether those are to be cancelled that the sweep file no longer has.

    Raises:
        UserError: A text names no run, or the folder belongs to another user.
    """
    folder.require_owner("only its owner can cancel runs")
    plan = folder.plan()
    runs: Sequence[Mapping[str, Any]] = plan.runs
    if dropped:
        runs = [run for run in plan.runs if run.get("dropped")]
    elif not every:
        runs = find_runs(plan.runs, texts)
    states = _states(folder, [run["run_id"] for run in runs])
    variation = Variation(plan.runs)
    active = [run for run in runs if not states[run["run_id"]].is_finished]
    ended = [f"{variation.name(run)} {states[run['run_id']]}" for run in runs if states[run["run_id"]].is_finished]
    return Chosen(active, ended)


def _states(folder: SweepFolder, run_ids: Sequence[str]) -> dict[str, State]:
    plan = folder.plan()
    scheduler = scheduler_for(plan.kind, os.environ)
    states = read_states(folder, plan.sweep, scheduler, ledger.read_ledger(folder.path), run_ids)
    for notice in (*states.damage, *states.answers.notices):
        note(notice)
    return {run_id: conclusion.state for run_id, conclusion in states.conclusions.items()}


def cancel_runs(folder: SweepFolder, runs: Sequence[Mapping[str, Any]]) -> None:
    """Cancels these runs. The ledger has it first: after a crash, a second call ends the jobs.

    Args:
        folder: The folder of the sweep.
        runs: The runs, as plan.json has them.

    Raises:
        UserError: Another submission is running, or the jobs could not be ended.
    """
    plan = folder.plan()
    scheduler = scheduler_for(plan.kind, os.environ)
    run_ids = [run["run_id"] for run in runs]
    with ledger.submission_lock(folder.path):
        known = scheduler.finish_interrupted(folder, ledger.read_ledger(folder.path), note)
        jobs = [known.jobs[run_id][-1] for run_id in run_ids if run_id in known.jobs]
        scheduler.check_here(jobs)
        with write_errors(folder, "nothing changed"):
            ledger.cancel(folder.path, run_ids, time.time())
        scheduler.cancel(jobs)
        # Another submission may be about to send the runs that wait for the other smoke runs.
        awaited = {job_id for job in jobs for job_id in job.after}
        end_unneeded_smoke(folder, ledger.read_ledger(folder.path), scheduler, only=awaited)
    names = list_names(list(map(Variation(plan.runs).name, runs)))
    pronoun = "them" if len(runs) > 1 else "it"
    say(f"cancelled {count_runs(len(runs))}: {names}; sweep retry sends {pronoun} again")
