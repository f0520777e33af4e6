"""The reason of a run that waits for its smoke run, or was cancelled because that has failed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from jobs.results.result import Result
from jobs.schedulers.conclude import Conclusion
from jobs.slurm.squeue import QueuedJob
from jobs.slurm.states import State
from jobs.storage.ledger import Ledger

_WAITS = "waits for its smoke run"


def smoke_failure(row: Result) -> str:
    """What became of a smoke run that has failed, in one line."""
    return f"the smoke run of {row.requested.allocation} failed: {row.scheduled.reason or row.state.value}"


def with_smoke_reasons(
    conclusions: Mapping[str, Conclusion],
    ledger: Ledger,
    queue: Mapping[str, QueuedJob] | None,
    read_failures: Callable[[], Mapping[str, str]],
) -> dict[str, Conclusion]:
    """The conclusions; of a run that waits for its smoke run, or was cancelled with it, with that as its reason.

    Args:
        conclusions: The conclusion on each run by its id.
        ledger: The ledger of the sweep.
        queue: What squeue lists, by job id; None if it was not asked or did not answer.
        read_failures: A function that returns what became of each smoke run that has failed, by its job id. It is only
            called if a run was cancelled that had to wait for one.
    """
    awaited = {run_id: _smoke_jobs(run_id, ledger) for run_id in conclusions if run_id not in ledger.cancelled}
    waiting: list[str] = []
    cancelled: list[str] = []
    for run_id in filter(awaited.get, awaited):
        why = _queue_reason(run_id, ledger, queue or {})
        if why == "Dependency":
            waiting.append(run_id)
        elif why == "DependencyNeverSatisfied" or conclusions[run_id].state is State.CANCELLED:
            cancelled.append(run_id)
    reasons = dict.fromkeys(waiting, _WAITS)
    if cancelled:
        failures = read_failures()
        reasons |= {run: failures[job] for run in cancelled for job in awaited[run] if job in failures}
    return {
        run_id: replace(conclusion, reason=reasons.get(run_id, conclusion.reason))
        for run_id, conclusion in conclusions.items()
    }


def _smoke_jobs(run_id: str, ledger: Ledger) -> Sequence[str]:
    """The smoke jobs that must succeed before a run starts; none if it waits for none."""
    if run_id in ledger.skipped:
        return ledger.skipped[run_id].after
    return ledger.jobs[run_id][-1].after if run_id in ledger.jobs else ()


def _queue_reason(run_id: str, ledger: Ledger, queue: Mapping[str, QueuedJob]) -> str:
    """Slurm's word for why the latest job of a run waits; empty if it does not wait."""
    for job in ledger.jobs.get(run_id, ())[-1:]:
        if job.job_id in queue and queue[job.job_id].state.is_pending:
            return queue[job.job_id].reason
    return ""
