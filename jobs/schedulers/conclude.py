"""The one place that decides the state of a run, from all that is known of its latest job. It reads nothing itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from jobs.slurm.attempts import AccountingRow
from jobs.slurm.squeue import QueuedJob
from jobs.slurm.states import State
from jobs.storage.ledger import Job, array_of
from jobs.storage.run_facts import RunFacts

# sacct and squeue list a job some seconds after sbatch, and a requeued one some seconds after its end.
DELAY_S = 60
# After this time without a sign of life, a job that the controller does not have is no longer running, whatever the
# accounting says: slurmdbd may have missed its end.
SILENT_S = 600

# After these ends Slurm may requeue a job by itself.
MAY_RETURN = frozenset({State.PREEMPTED, State.NODE_FAIL})

_CANCELLED = "cancelled by sweep cancel; sweep retry sends it again"
_NO_SUMMARY = "its job ended with status 0, but the run has no summary, so it is not done"

Source = Literal["ledger", "sacct", "squeue", "records", "local queue"]


@dataclass(frozen=True)
class Evidence:
    """What is known of one run.

    Attributes:
        jobs: Its jobs by the ledger, the latest last.
        attempts: The attempts of the latest job by the accounting, the latest last.
        queue: What the controller lists, by job id; None if it did not answer.
        facts: What the folder of the run shows.
        now_s: The time now, in seconds since 1970.
        has_accounting: Whether the accounting has answered now; else `attempts` are from earlier answers.
        is_visible: Whether jobs that are not listed do not exist: sites may hide the jobs of other users.
        here: The cluster that was asked; None if that is not known.
        is_cancelled: Whether `sweep cancel` has cancelled the run since its latest job was sent.
        is_skipped: Whether the run was not sent since then, because its smoke run has failed.
    """

    jobs: Sequence[Job]
    attempts: Sequence[AccountingRow]
    queue: Mapping[str, QueuedJob] | None
    facts: RunFacts
    now_s: float
    has_accounting: bool = True
    is_visible: bool = True
    here: str | None = None
    is_cancelled: bool = False
    is_skipped: bool = False


@dataclass(frozen=True)
class Conclusion:
    """The state of a run.

    Attributes:
        state: The state.
        source: What it follows from.
        attempt: The latest attempt; None if the job has none that is known.
        reason: Why the run waits, or why its state is not certain; None if there is nothing to say.
    """

    state: State
    source: Source
    attempt: AccountingRow | None = None
    reason: str | None = None


def conclude(evidence: Evidence) -> Conclusion:
    """The state of a run.

    An end that the accounting has seen is final, unless the controller lists the job again after a requeue; but a run
    without a summary is not done. Otherwise the controller knows best what waits and runs. A job that it does not list
    has ended, and the run's own files say how; without any, it was cancelled while it waited.
    """
    return _with_cancellation(_conclude(evidence), evidence.is_cancelled)


def _with_cancellation(conclusion: Conclusion, is_cancelled: bool) -> Conclusion:
    if is_cancelled and conclusion.state is State.CANCELLED:
        return replace(conclusion, reason=_CANCELLED)
    return conclusion


def _conclude(evidence: Evidence) -> Conclusion:
    if evidence.is_skipped:
        return Conclusion(State.CANCELLED, "ledger")
    if not evidence.jobs:
        return _not_submitted(evidence.is_cancelled)
    latest = evidence.attempts[-1] if evidence.attempts else None
    listed = _listed(evidence)
    if latest is not None and latest.state.is_finished:
        return _ended(latest, listed, evidence)
    job = evidence.jobs[-1]
    if not job.may_be_on(evidence.here):
        if evidence.facts.has_summary:
            return _end(State.COMPLETED, "records", job, latest, evidence.now_s)
        reason = f"job {job.job_id} is on cluster {job.cluster}; the Slurm of this host is {evidence.here}"
        return Conclusion(State.UNKNOWN, "ledger", latest, reason)
    if listed is not None:
        return _by_controller(listed, latest, evidence)
    if evidence.queue is None and not evidence.has_accounting and evidence.facts.has_summary:
        return _end(State.COMPLETED, "records", job, latest, evidence.now_s)
    if evidence.queue is None or _is_new(evidence, latest):
        return _by_accounting(latest)
    return _unlisted(evidence, latest)


def _not_submitted(is_cancelled: bool) -> Conclusion:
    """The conclusion on a run without a job; `sweep submit` does not send one that was cancelled."""
    return Conclusion(State.CANCELLED if is_cancelled else State.NOT_SUBMITTED, "ledger")


def _listed(evidence: Evidence) -> QueuedJob | None:
    """What the controller lists of the latest job; an array that was cancelled as a whole is listed by its own id."""
    job_id = evidence.jobs[-1].job_id
    queue = evidence.queue or {}
    array = queue.get(array_of(job_id))
    if job_id not in queue and array is not None and array.state.is_finished:
        return array
    return queue.get(job_id)


def _ended(latest: AccountingRow, listed: QueuedJob | None, evidence: Evidence) -> Conclusion:
    if listed is not None and (listed.state.is_pending or listed.state in (State.RUNNING, State.CONFIGURING)):
        return Conclusion(listed.state, "squeue", latest, listed.explanation)  # it was requeued
    if latest.state in MAY_RETURN and listed is not None and not listed.state.is_finished:
        return Conclusion(State.COMPLETING, "squeue", latest)  # its nodes are cleaned; then it may be requeued
    ended_before_s = evidence.now_s - (latest.end_s or 0)
    if latest.state in MAY_RETURN and ended_before_s < DELAY_S:
        return Conclusion(State.REQUEUED, "sacct", replace(latest, state=State.REQUEUED))
    if latest.state is State.FAILED and latest.out_of_memory:
        return Conclusion(State.OUT_OF_MEMORY, "sacct", latest)  # from Slurm 22.05.4 on, only the step has this state
    if latest.state.is_success and not evidence.facts.has_summary:
        if ended_before_s <= DELAY_S:
            return Conclusion(State.COMPLETING, "records", latest)  # a shared file system may show it some seconds late
        return Conclusion(State.FAILED, "records", replace(latest, state=State.FAILED), _NO_SUMMARY)
    return Conclusion(latest.state, "sacct", latest)


def _by_controller(listed: QueuedJob, latest: AccountingRow | None, evidence: Evidence) -> Conclusion:
    """squeue was asked after sacct: a run that waits although sacct has its start was requeued."""
    if listed.state is State.UNKNOWN:
        return _by_accounting(latest)
    if not listed.state.is_finished:
        return Conclusion(listed.state, "squeue", latest, listed.explanation)
    has_started = latest is not None and latest.start_s is not None
    if evidence.has_accounting and (has_started or listed.state is not State.CANCELLED):
        return Conclusion(State.COMPLETING, "squeue", latest)  # sacct will have the end, with its figures
    if listed.state.is_success and not evidence.facts.has_summary:
        return Conclusion(State.COMPLETING, "squeue", latest)  # squeue forgets it soon, and then the files decide
    return Conclusion(listed.state, "squeue", replace(latest or AccountingRow(listed.job_id), state=listed.state))


def _is_new(evidence: Evidence, latest: AccountingRow | None) -> bool:
    """Whether the latest job may be too new to be listed. One that was cancelled has been listed."""
    if evidence.is_cancelled:
        return False
    submitted_s = max(evidence.jobs[-1].submitted_s, (latest and latest.submit_s) or 0)
    return evidence.now_s - submitted_s <= DELAY_S


def _by_accounting(latest: AccountingRow | None) -> Conclusion:
    if latest is None:
        return Conclusion(State.PENDING, "ledger")  # sacct lists a job only some seconds after sbatch
    if latest.unknown_state is not None:
        return Conclusion(latest.state, "sacct", latest, f"sacct says {latest.unknown_state}")
    return Conclusion(latest.state, "sacct", latest)


def _unlisted(evidence: Evidence, latest: AccountingRow | None) -> Conclusion:
    """The state of a job that neither waits nor runs by the controller, and whose end no accounting has seen."""
    job, facts = evidence.jobs[-1], evidence.facts
    failed_s, wrote_s = (_since(job, time_s) for time_s in (facts.failed_s, facts.wrote_s))
    started_s = latest.start_s if latest is not None else None
    signs_s = [time_s for time_s in (started_s, failed_s, wrote_s) if time_s is not None]
    alive_s: float | None = max(signs_s, default=None)
    was_alive = alive_s is not None and evidence.now_s - alive_s <= SILENT_S
    has_started = started_s is not None
    if evidence.has_accounting and evidence.is_visible and has_started and was_alive:
        return _by_accounting(latest)  # sacct will have the end, with its figures
    if facts.has_summary:
        return _end(State.COMPLETED, "records", job, latest, wrote_s or evidence.now_s)
    if failed_s is not None:
        return _end(State.FAILED, "records", job, latest, failed_s)
    if not evidence.is_visible:
        return Conclusion(State.UNKNOWN, "squeue", latest, "its job is not visible to you")
    if alive_s is None:
        return _end(State.CANCELLED, "squeue", job, latest, evidence.now_s)
    if was_alive:
        return _by_accounting(latest)  # it may still run, on a node that the controller has lost
    reason = "its job has ended without a result, and Slurm's accounting does not say why"
    return replace(_end(State.FAILED, "squeue", job, latest, alive_s), reason=reason)


def _since(job: Job, time_s: float | None) -> float | None:
    """The time, unless it is before the job: a run that is sent again still has the records of an earlier one."""
    return time_s if time_s is not None and time_s >= job.submitted_s else None


def _end(state: State, source: Source, job: Job, latest: AccountingRow | None, end_s: float) -> Conclusion:
    """A conclusion with an attempt that ended, although no accounting has seen the end."""
    attempt = latest or AccountingRow(job.job_id, submit_s=int(job.submitted_s))
    attempt = replace(attempt, state=state, end_s=int(end_s))
    return Conclusion(state, source, attempt)


def conclude_local(
    jobs: Sequence[Job],
    attempts: Sequence[AccountingRow],
    facts: RunFacts,
    *,
    queue_lives: bool,
    is_cancelled: bool = False,
    is_skipped: bool = False,
) -> Conclusion:
    """The state of a run of the local executor.

    The queue writes the states itself. A run that had not ended when its queue was killed, or lost in a reboot, has
    ended with it.

    Args:
        jobs: Its jobs by the ledger, the latest last.
        attempts: The attempts of the latest job, as the queue has written them.
        facts: What the folder of the run shows.
        queue_lives: Whether the process of the queue still runs.
        is_cancelled: Whether `sweep cancel` has cancelled the run.
        is_skipped: Whether the run was not sent, because its smoke run has failed.
    """
    if is_skipped:
        return _with_cancellation(Conclusion(State.CANCELLED, "ledger"), is_cancelled)
    if not jobs:
        return _with_cancellation(_not_submitted(is_cancelled), is_cancelled)
    latest = attempts[-1] if attempts else None
    if latest is not None and latest.state.is_success and not facts.has_summary:
        return Conclusion(State.FAILED, "records", replace(latest, state=State.FAILED), _NO_SUMMARY)
    if latest is not None and latest.state.is_finished:
        return _with_cancellation(Conclusion(latest.state, "local queue", latest), is_cancelled)
    if queue_lives:
        return Conclusion(latest.state if latest else State.PENDING, "local queue", latest)
    state = State.COMPLETED if facts.has_summary and facts.failed_s is None else State.CANCELLED
    ended = Conclusion(state, "records", replace(latest or AccountingRow(jobs[-1].job_id), state=state))
    return _with_cancellation(ended, is_cancelled)
