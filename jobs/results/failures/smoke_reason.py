"""The reason of a run that was cancelled because its smoke run has failed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from jobs.results.result import Result
from jobs.schedulers.conclude import Conclusion
from jobs.slurm.squeue import QueuedJob
from jobs.slurm.states import State
from jobs.storage.ledger import Ledger


def smoke_failure(row: Result) -> str:
    """What became of a smoke run that has failed, in one line."""
    return f"the smoke run of {row.label} failed: {row.scheduled.reason or row.state.value}"


def with_smoke_reasons(
    conclusions: Mapping[str, Conclusion],
    ledger: Ledger,
    queue: Mapping[str, QueuedJob],
    read_failures: Callable[[], Mapping[str, str]],
) -> dict[str, Conclusion]:
    """The conclusions; of a run that was cancelled because its smoke run has failed, with that as its reason.

    Args:
        conclusions: The conclusion on each run by its id.
        ledger: The ledger of the sweep.
        queue: What squeue lists, by job id. It may still list a job that Slurm is about to cancel.
        read_failures: A function that returns what became of each smoke run that has failed, by its job id. It is only
            called if a run was cancelled that had to wait for one.
    """
    cancelled = {
        run_id: smoke_jobs(run_id, ledger)
        for run_id, conclusion in conclusions.items()
        if conclusion.state is State.CANCELLED or _never_starts(run_id, ledger, queue)
    }
    cancelled = {run_id: jobs for run_id, jobs in cancelled.items() if jobs and run_id not in ledger.cancelled}
    if not cancelled:
        return dict(conclusions)
    failures = read_failures()
    reasons = {run: failures[job] for run, jobs in cancelled.items() for job in jobs if job in failures}
    return {
        run_id: replace(conclusion, reason=reasons.get(run_id, conclusion.reason))
        for run_id, conclusion in conclusions.items()
    }


def smoke_jobs(run_id: str, ledger: Ledger) -> Sequence[str]:
    """The smoke jobs that must succeed before a run starts; none if it waits for none."""
    if run_id in ledger.skipped:
        return ledger.skipped[run_id].after
    return ledger.jobs[run_id][-1].after if run_id in ledger.jobs else ()


def _never_starts(run_id: str, ledger: Ledger, queue: Mapping[str, QueuedJob]) -> bool:
    latest = [queue.get(job.job_id) for job in ledger.jobs.get(run_id, ())[-1:]]
    return any(job is not None and job.reason == "DependencyNeverSatisfied" for job in latest)
