"""The current status of a sweep: what its scheduler answers, joined with the records of its runs."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from disttrain.records.json_values import DamagedFile
from disttrain.records.lifecycle.attempt_log import read_attempts
from jobs.planning.plan import count_runs
from jobs.results.collect import join
from jobs.results.failures.job_log import read_log_end
from jobs.results.failures.smoke_reason import smoke_failure, with_smoke_reasons
from jobs.results.live.stalls import read_stall
from jobs.results.result import Result
from jobs.results.run_records import read_run
from jobs.schedulers.conclude import Conclusion
from jobs.schedulers.scheduler import Scheduler
from jobs.schedulers.states import States, last_states, read_states, scheduler_for
from jobs.slurm.squeue import QueuedJob
from jobs.slurm.states import State
from jobs.storage.ledger import LEDGER_NAME, Ledger, read_ledger
from jobs.storage.sweep_folder import SweepFolder


@dataclass(frozen=True)
class Status:
    """Every run of a sweep, and notices about how reliable these states are."""

    results: tuple[Result, ...]
    notices: tuple[str, ...]
    is_current: bool = True  # False if the accounting did not answer: the states are from an earlier answer
    is_saved: bool = True  # False if the answer of the accounting could not be saved; a notice says why
    queue: Mapping[str, QueuedJob] = field(default_factory=dict)  # what squeue lists, by job id
    asked_s: float | None = None  # the time of the question to the scheduler, if it was asked earlier


def read_status(folder: SweepFolder, environ: Mapping[str, str], scheduler: Scheduler | None = None) -> Status:
    """The state of every run, from one sacct call and, if a run has not ended, one squeue call.

    sacct's answer is saved in accounting.jsonl, if this user owns the folder, because sites purge their accounting.

    Args:
        folder: The folder of a submitted sweep.
        environ: The environment for sacct and squeue.
        scheduler: The scheduler to ask; None for one that asks each time.
    """
    plan, ledger = folder.plan(), read_ledger(folder.path)
    scheduler = scheduler or scheduler_for(plan.kind, environ)
    run_ids = [run["run_id"] for run in plan.runs]
    states = read_states(folder, plan.sweep, scheduler, ledger, run_ids)
    answers = states.answers
    results = read_rows(folder, plan.runs, ledger, scheduler, states)
    notices = (*states.damage, *answers.notices, *_unsubmitted_notice(plan.runs, ledger), *_code_notice(results))
    return Status(results, notices, answers.is_current, answers.is_saved, answers.queue or {}, answers.asked_s)


def last_results(folder: SweepFolder) -> tuple[Result, ...]:
    """Every run of a sweep by the last answer of its scheduler, and by the current records, without a question to it.

    Args:
        folder: The folder of a submitted sweep.
    """
    plan, ledger = folder.plan(), read_ledger(folder.path)
    scheduler = scheduler_for(plan.kind, os.environ)
    states = last_states(folder, plan.sweep, scheduler, ledger, [run["run_id"] for run in plan.runs])
    return read_rows(folder, plan.runs, ledger, scheduler, states)


def read_rows(
    folder: SweepFolder, runs: Sequence[Mapping[str, Any]], ledger: Ledger, scheduler: Scheduler, states: States
) -> tuple[Result, ...]:
    """The rows of some runs, from their records and the states that are known of them.

    Args:
        folder: The folder of the sweep.
        runs: The runs, as plan.json has them.
        ledger: The ledger of the sweep.
        scheduler: Its scheduler.
        states: The states of these runs.
    """
    return join(
        runs,
        ledger,
        states.answers.attempts,
        {run["run_id"]: read_run(folder.run(run["run_id"])) for run in runs},
        with_smoke_reasons(
            _with_stalls(folder, runs, states.conclusions),
            ledger,
            states.answers.queue or {},
            partial(_smoke_failures, folder, scheduler),
        ),
        has_accounting=scheduler.has_accounting,
        read_log=partial(read_log_end, folder.logs),
        read_attempts=lambda run_id: read_attempts(folder.run(run_id)),
    )


def _smoke_failures(folder: SweepFolder, scheduler: Scheduler) -> dict[str, str]:
    """What became of each smoke run that has failed, by its job id. Slurm is asked until it has seen their ends."""
    smoke = folder.smoke
    try:
        plan, ledger = smoke.plan(), read_ledger(smoke.path)
    except (DamagedFile, OSError):  # another user cannot open it
        return {}
    runs = [run for run in plan.runs if run["run_id"] in ledger.jobs]
    run_ids = [run["run_id"] for run in runs]
    states = last_states(smoke, plan.sweep, scheduler, ledger, run_ids)
    if not all(conclusion.state.is_finished for conclusion in states.conclusions.values()):
        # A scheduler of its own: one that shares its answers does so for one folder.
        scheduler = scheduler_for(plan.kind, os.environ)
        states = read_states(smoke, plan.sweep, scheduler, ledger, run_ids)
    rows = read_rows(smoke, runs, ledger, scheduler, states)
    failed = (row for row in rows if row.state.is_finished and not row.state.is_success)
    return {ledger.jobs[row.run_id][-1].job_id: smoke_failure(row) for row in failed}


def _with_stalls(
    folder: SweepFolder, planned: Sequence[Mapping[str, Any]], conclusions: Mapping[str, Conclusion]
) -> dict[str, Conclusion]:
    """The conclusions; of a run that runs and writes no steps, with that as its reason."""
    checked, now_s = dict(conclusions), time.time()
    for run in planned:
        conclusion = conclusions[run["run_id"]]
        if conclusion.state is State.RUNNING and conclusion.reason is None:
            started_s = None if conclusion.attempt is None else conclusion.attempt.start_s
            reason = read_stall(folder.run(run["run_id"]), run["world_size"], started_s, now_s)
            checked[run["run_id"]] = replace(conclusion, reason=reason)
    return checked


def submitted_runs(folder: SweepFolder) -> frozenset[str]:
    """The ids of the runs that were submitted and that the sweep file still has: a command may wait for them."""
    submitted = read_ledger(folder.path).jobs
    return frozenset(
        run["run_id"] for run in folder.plan().runs if run["run_id"] in submitted and not run.get("dropped")
    )


def _unsubmitted_notice(planned: Sequence[Mapping[str, Any]], ledger: Ledger) -> tuple[str, ...]:
    """A notice if the ledger has no job of some runs. With damaged lines, they may have been submitted."""
    without_job = {run["run_id"] for run in planned} - set(ledger.jobs)
    if without_job and ledger.damaged_lines:
        number = f"{len(without_job)} of {len(planned)} runs"
        return (f"{number} have no job in the readable lines of {LEDGER_NAME}; they may have been submitted",)
    unsubmitted = without_job - set(ledger.unconfirmed) - ledger.cancelled - ledger.skipped.keys()
    if not unsubmitted:
        return ()
    text = f"{len(unsubmitted)} of {len(planned)} runs were never submitted"
    if unsubmitted <= {run_id for script in ledger.scripts.values() for run_id in script.run_ids}:
        return (f"{text}; sbatch submits their scripts, in scripts/",)
    return (f"{text}; sweep submit submits them",)


def _code_notice(results: Sequence[Result]) -> tuple[str, ...]:
    """A notice if the runs have started different code."""
    counts = Counter(row.requested.code for row in results if row.requested.code and not row.dropped)
    if len(counts) < 2:
        return ()
    versions = ", ".join(f"{code} ({count_runs(number)})" for code, number in counts.items())
    return (f"the runs have {len(counts)} versions of the code: {versions}",)


@dataclass(frozen=True)
class LastKnown:
    """The states of a sweep's runs by the last answer of its scheduler.

    Attributes:
        states: The state of each run that the sweep file still has, by run id.
        known_s: The time of that answer, in seconds since 1970; None if it was never asked.
    """

    states: Mapping[str, State]
    known_s: float | None


def last_known(folder: SweepFolder) -> LastKnown:
    """The states of a sweep's runs, without a question to the scheduler."""
    plan = folder.plan()
    scheduler = scheduler_for(plan.kind, os.environ)
    present = [run["run_id"] for run in plan.runs if not run.get("dropped", False)]
    conclusions = last_states(folder, plan.sweep, scheduler, read_ledger(folder.path), present).conclusions
    states = {run_id: conclusion.state for run_id, conclusion in conclusions.items()}
    return LastKnown(states, scheduler.known_s(folder))
