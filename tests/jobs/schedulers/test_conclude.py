"""The state of a run from every combination of what the ledger, the accounting, the controller and its files say."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest

from jobs.schedulers.conclude import DELAY_S, SILENT_S, Conclusion, Evidence, conclude, conclude_local
from jobs.slurm.attempts import AccountingRow
from jobs.slurm.squeue import QueuedJob
from jobs.slurm.states import State
from jobs.storage.ledger import Job
from jobs.storage.run_facts import RunFacts

SENT_S = 1_000_000.0  # the submission of the job
NOW_S = SENT_S + 7200
JOB = Job("a", "7_0", SENT_S)
WAITING = AccountingRow("7_0", state=State.PENDING, submit_s=int(SENT_S))
RUNNING = replace(WAITING, state=State.RUNNING, start_s=int(SENT_S) + 60, elapsed_s=7140)
DONE = replace(RUNNING, state=State.COMPLETED, end_s=int(SENT_S) + 600, elapsed_s=540, exit_code=0)
FAILED = replace(DONE, state=State.FAILED, exit_code=1)
PREEMPTED = replace(DONE, state=State.PREEMPTED, end_s=int(NOW_S) - 5)
REQUEUED = replace(DONE, state=State.REQUEUED)
AGAIN = replace(WAITING, submit_s=int(SENT_S) + 700)
LONG_AGO = replace(RUNNING, start_s=int(NOW_S) - SILENT_S - 1)
JUST_STARTED = replace(RUNNING, start_s=int(NOW_S) - 5)

NOTHING = RunFacts()
WROTE = RunFacts(wrote_s=NOW_S - 5)
SILENT = RunFacts(wrote_s=NOW_S - SILENT_S - 1)
EARLIER = RunFacts(failed_s=SENT_S - 50, wrote_s=SENT_S - 60)  # of an earlier job
SUMMARY = RunFacts(has_summary=True, wrote_s=SENT_S + 500)
FAILURE = RunFacts(failed_s=SENT_S + 500, wrote_s=SENT_S + 400)


def lists(state: State, reason: str = "None", job_id: str = "7_0") -> dict[str, QueuedJob]:
    return {job_id: QueuedJob(job_id, state, reason)}


WAITS, RUNS, ENDED = lists(State.PENDING, "Priority"), lists(State.RUNNING), lists(State.FAILED)
EMPTY: dict[str, QueuedJob] = {}


NO_SUMMARY = "its job ended with status 0, but the run has no summary, so it is not done"


@dataclass(frozen=True)
class Case:
    """What is known of a run, and the state and the source that follow."""

    attempts: tuple[AccountingRow, ...]
    queue: dict[str, QueuedJob] | None
    facts: RunFacts
    state: State
    source: str
    reason: str | None = None
    jobs: tuple[Job, ...] = (JOB,)
    now_s: float = NOW_S
    has_accounting: bool = True
    is_visible: bool = True
    here: str | None = None


OTHERS = (replace(JOB, cluster="large"),)
SENT_AGAIN = (JOB, Job("a", "9", NOW_S - 5))
CASES = {
    # Not sent
    "no job": Case((), EMPTY, NOTHING, State.NOT_SUBMITTED, "ledger", jobs=()),
    "no job, but a summary": Case((), EMPTY, SUMMARY, State.NOT_SUBMITTED, "ledger", jobs=()),
    # An end that the accounting has seen
    "done": Case((DONE,), EMPTY, SUMMARY, State.COMPLETED, "sacct"),
    "done, squeue not asked": Case((DONE,), None, SUMMARY, State.COMPLETED, "sacct"),
    "done, the summary is not there yet": Case(
        (replace(DONE, end_s=int(NOW_S) - 5),), EMPTY, NOTHING, State.COMPLETING, "records"
    ),
    "status 0 without a summary": Case((DONE,), EMPTY, WROTE, State.FAILED, "records", NO_SUMMARY),
    "done, squeue says so too": Case((DONE,), lists(State.COMPLETED), SUMMARY, State.COMPLETED, "sacct"),
    "done, its last processes end": Case((DONE,), lists(State.COMPLETING), SUMMARY, State.COMPLETED, "sacct"),
    "failed": Case((FAILED,), EMPTY, FAILURE, State.FAILED, "sacct"),
    "failed, with a summary": Case((FAILED,), EMPTY, SUMMARY, State.FAILED, "sacct"),
    "failed, out of memory": Case(
        (replace(FAILED, out_of_memory=True),), EMPTY, NOTHING, State.OUT_OF_MEMORY, "sacct"
    ),
    "complete, a step out of memory": Case(
        (replace(DONE, out_of_memory=True),), EMPTY, SUMMARY, State.COMPLETED, "sacct"
    ),
    "cancelled": Case((replace(WAITING, state=State.CANCELLED, end_s=int(NOW_S)),), EMPTY, NOTHING, State.CANCELLED,
                      "sacct"),
    "time limit": Case((replace(DONE, state=State.TIMEOUT),), EMPTY, NOTHING, State.TIMEOUT, "sacct"),
    # Requeues
    "preempted a moment ago": Case((PREEMPTED,), EMPTY, NOTHING, State.REQUEUED, "sacct"),
    "preempted, and it waits again": Case((PREEMPTED,), WAITS, NOTHING, State.PENDING, "squeue"),
    "preempted, and it runs again": Case((PREEMPTED,), RUNS, WROTE, State.RUNNING, "squeue"),
    "preempted, its nodes are cleaned": Case(
        (replace(PREEMPTED, end_s=int(NOW_S) - 900),), lists(State.COMPLETING), NOTHING, State.COMPLETING, "squeue"
    ),
    "preempted for good, still listed": Case(
        (replace(PREEMPTED, end_s=int(NOW_S) - DELAY_S),), lists(State.PREEMPTED), NOTHING, State.PREEMPTED, "sacct"
    ),
    "preempted for good": Case(
        (replace(PREEMPTED, end_s=int(NOW_S) - DELAY_S),), EMPTY, NOTHING, State.PREEMPTED, "sacct"
    ),
    "a lost node a moment ago": Case(
        (replace(PREEMPTED, state=State.NODE_FAIL),), EMPTY, NOTHING, State.REQUEUED, "sacct"
    ),
    "a failure a moment ago": Case(
        (replace(FAILED, end_s=int(NOW_S) - 5),), EMPTY, FAILURE, State.FAILED, "sacct"
    ),
    "requeued, no new attempt yet": Case((REQUEUED,), WAITS, NOTHING, State.PENDING, "squeue"),
    "requeued, and waits": Case((REQUEUED, AGAIN), WAITS, FAILURE, State.PENDING, "squeue"),
    "requeued, sacct is late": Case((RUNNING,), WAITS, WROTE, State.PENDING, "squeue"),
    "requeued, squeue not asked": Case((REQUEUED,), None, NOTHING, State.REQUEUED, "sacct"),
    # It waits or runs
    "waits": Case((WAITING,), WAITS, NOTHING, State.PENDING, "squeue"),
    "waits, not yet in sacct": Case((), WAITS, NOTHING, State.PENDING, "squeue"),
    "waits, held": Case(
        (WAITING,), lists(State.PENDING, "JobHeldUser"), NOTHING, State.PENDING, "squeue",
        "waits (JobHeldUser): it is held; scontrol release 7_0 starts it",
    ),
    "waits for ever": Case(
        (WAITING,), lists(State.PENDING, "DependencyNeverSatisfied"), NOTHING, State.PENDING, "squeue",
        "waits (DependencyNeverSatisfied): it will never start, because the job that it depends on has failed",
    ),
    "runs": Case((RUNNING,), RUNS, WROTE, State.RUNNING, "squeue"),
    "runs, sacct is late": Case((WAITING,), RUNS, NOTHING, State.RUNNING, "squeue"),
    "runs, sacct has nothing": Case((), RUNS, NOTHING, State.RUNNING, "squeue"),
    "runs, with failures of an earlier start": Case((RUNNING,), RUNS, FAILURE, State.RUNNING, "squeue"),
    "runs, squeue not asked": Case((RUNNING,), None, WROTE, State.RUNNING, "sacct"),
    "a word that squeue has not": Case((RUNNING,), lists(State.UNKNOWN), WROTE, State.RUNNING, "sacct"),
    "a word that nobody has": Case((), lists(State.UNKNOWN), NOTHING, State.PENDING, "ledger"),
    "suspended": Case((RUNNING,), lists(State.SUSPENDED), WROTE, State.SUSPENDED, "squeue"),
    # squeue has seen the end, and sacct has not
    "ended by squeue": Case((RUNNING,), ENDED, FAILURE, State.COMPLETING, "squeue"),
    "ended by squeue, no sacct": Case((RUNNING,), ENDED, FAILURE, State.FAILED, "squeue", has_accounting=False),
    "ended by squeue, not in sacct yet": Case((), lists(State.COMPLETED), SUMMARY, State.COMPLETING, "squeue"),
    "ended by squeue, never any sacct": Case(
        (), lists(State.COMPLETED), SUMMARY, State.COMPLETED, "squeue", has_accounting=False
    ),
    "ended by squeue with status 0, no sacct and no summary": Case(
        (), lists(State.COMPLETED), NOTHING, State.COMPLETING, "squeue", has_accounting=False
    ),
    "a running task is cancelled": Case((RUNNING,), lists(State.CANCELLED), WROTE, State.COMPLETING, "squeue"),
    "a cancelled task in squeue": Case((WAITING,), lists(State.CANCELLED), NOTHING, State.CANCELLED, "squeue"),
    "a cancelled array in squeue": Case(
        (WAITING,), lists(State.CANCELLED, job_id="7"), NOTHING, State.CANCELLED, "squeue"
    ),
    "an array cancelled as soon as it was sent": Case(
        (), lists(State.CANCELLED, job_id="7"), NOTHING, State.CANCELLED, "squeue", now_s=SENT_S + 5
    ),
    "another job with the array's number": Case(
        (), lists(State.RUNNING, job_id="7"), NOTHING, State.CANCELLED, "squeue"
    ),
    # Neither waits nor runs, and sacct has not seen the end
    "cancelled while it waited": Case((WAITING,), EMPTY, NOTHING, State.CANCELLED, "squeue"),
    "cancelled, never in sacct": Case((), EMPTY, NOTHING, State.CANCELLED, "squeue"),
    "cancelled, with records of an earlier job": Case((WAITING,), EMPTY, EARLIER, State.CANCELLED, "squeue"),
    "sent a moment ago": Case((), EMPTY, NOTHING, State.PENDING, "ledger", now_s=SENT_S + 5),
    "sent a moment ago, and sacct has it": Case((WAITING,), EMPTY, NOTHING, State.PENDING, "sacct", now_s=SENT_S + 5),
    "sent again a moment ago": Case((), EMPTY, SUMMARY, State.PENDING, "ledger", jobs=SENT_AGAIN),
    "requeued a moment ago": Case(
        (REQUEUED, replace(AGAIN, submit_s=int(NOW_S) - 5)), EMPTY, NOTHING, State.PENDING, "sacct"
    ),
    "a summary, sacct is late": Case((JUST_STARTED,), EMPTY, SUMMARY, State.RUNNING, "sacct"),
    "a summary, sacct is very late": Case((RUNNING,), EMPTY, SUMMARY, State.COMPLETED, "records"),
    "a summary, sacct does not answer": Case(
        (JUST_STARTED,), EMPTY, SUMMARY, State.COMPLETED, "records", has_accounting=False
    ),
    "a summary, no sacct at all": Case((), EMPTY, SUMMARY, State.COMPLETED, "records", has_accounting=False),
    "a summary, purged in sacct": Case((WAITING,), EMPTY, SUMMARY, State.COMPLETED, "records"),
    "a failure, no sacct at all": Case((), EMPTY, FAILURE, State.FAILED, "records", has_accounting=False),
    "a failure, sacct is late": Case((JUST_STARTED,), EMPTY, FAILURE, State.RUNNING, "sacct"),
    "a failure, sacct is very late": Case((RUNNING,), EMPTY, FAILURE, State.FAILED, "records"),
    "a failure of an earlier job": Case((), EMPTY, EARLIER, State.CANCELLED, "squeue"),
    "started a moment ago": Case((JUST_STARTED,), EMPTY, NOTHING, State.RUNNING, "sacct"),
    "wrote a moment ago": Case((LONG_AGO,), EMPTY, WROTE, State.RUNNING, "sacct"),
    "wrote a moment ago, no sacct": Case((), EMPTY, WROTE, State.PENDING, "ledger"),
    "gone, and sacct says that it runs": Case(
        (LONG_AGO,), EMPTY, SILENT, State.FAILED, "squeue",
        "its job has ended without a result, and Slurm's accounting does not say why",
    ),
    "gone, no sacct": Case(
        (), EMPTY, SILENT, State.FAILED, "squeue",
        "its job has ended without a result, and Slurm's accounting does not say why",
    ),
    # Nothing answers
    "neither answers": Case((), None, NOTHING, State.PENDING, "ledger"),
    "neither answers, and there is a summary": Case(
        (WAITING,), None, SUMMARY, State.COMPLETED, "records", has_accounting=False
    ),
    "neither answers, it waited": Case((WAITING,), None, NOTHING, State.PENDING, "sacct"),
    "neither answers, it ran": Case((RUNNING,), None, SUMMARY, State.RUNNING, "sacct"),
    # Another user
    "hidden jobs": Case(
        (), EMPTY, NOTHING, State.UNKNOWN, "squeue", "its job is not visible to you", is_visible=False
    ),
    "hidden jobs that ran": Case(
        (RUNNING,), EMPTY, WROTE, State.UNKNOWN, "squeue", "its job is not visible to you", is_visible=False
    ),
    "hidden jobs with a summary": Case((), EMPTY, SUMMARY, State.COMPLETED, "records", is_visible=False),
    "hidden jobs with a failure": Case((), EMPTY, FAILURE, State.FAILED, "records", is_visible=False),
    "another user who may see it": Case((RUNNING,), RUNS, WROTE, State.RUNNING, "squeue", is_visible=False),
    # Another cluster
    "on another cluster": Case(
        (), EMPTY, NOTHING, State.UNKNOWN, "ledger",
        "job 7_0 is on cluster large; the Slurm of this host is small", jobs=OTHERS, here="small",
    ),
    "the number of another cluster's job": Case(
        (WAITING,), RUNS, NOTHING, State.UNKNOWN, "ledger",
        "job 7_0 is on cluster large; the Slurm of this host is small", jobs=OTHERS, here="small",
    ),
    "a summary on another cluster": Case((), EMPTY, SUMMARY, State.COMPLETED, "records", jobs=OTHERS, here="small"),
    "done on another cluster": Case((DONE,), EMPTY, SUMMARY, State.COMPLETED, "sacct", jobs=OTHERS, here="small"),
    "on this cluster": Case((RUNNING,), RUNS, WROTE, State.RUNNING, "squeue", jobs=OTHERS, here="large"),
    "a cluster without a name": Case((RUNNING,), RUNS, WROTE, State.RUNNING, "squeue", jobs=OTHERS),
    "a job of a former release": Case((RUNNING,), RUNS, WROTE, State.RUNNING, "squeue", here="small"),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_conclusion(name: str) -> None:
    case = CASES[name]
    concluded = conclude(
        Evidence(
            case.jobs,
            case.attempts,
            case.queue,
            case.facts,
            case.now_s,
            case.has_accounting,
            is_visible=case.is_visible,
            here=case.here,
        )
    )
    assert (concluded.state, concluded.source, concluded.reason) == (case.state, case.source, case.reason)
    if concluded.attempt is not None:
        assert concluded.attempt.job_id in (case.jobs[-1].job_id, "7")
        assert concluded.state.is_finished is False or concluded.attempt.state.is_finished


@pytest.mark.parametrize(
    ("attempts", "facts", "lives", "state"),
    [
        ((), NOTHING, True, State.PENDING),
        ((RUNNING,), NOTHING, True, State.RUNNING),
        ((DONE,), SUMMARY, True, State.COMPLETED),
        ((DONE,), SUMMARY, False, State.COMPLETED),
        ((DONE,), NOTHING, True, State.FAILED),
        ((FAILED,), SUMMARY, False, State.FAILED),
        ((RUNNING,), SUMMARY, False, State.COMPLETED),
        ((RUNNING,), replace(SUMMARY, failed_s=1.0), False, State.CANCELLED),
        ((RUNNING,), FAILURE, False, State.CANCELLED),
        ((), NOTHING, False, State.CANCELLED),
    ],
)
def test_local_conclusion(attempts: tuple[AccountingRow, ...], facts: RunFacts, lives: bool, state: State) -> None:
    concluded = conclude_local((JOB,), attempts, facts, queue_lives=lives)
    assert concluded.state is state
    assert conclude_local((), (), facts, queue_lives=lives).state is State.NOT_SUBMITTED


@pytest.mark.parametrize("jobs", [(), (JOB,)])
def test_a_skipped_run_is_cancelled(jobs: tuple[Job, ...]) -> None:
    evidence = Evidence(jobs, (FAILED,) if jobs else (), {}, NOTHING, NOW_S, is_skipped=True)
    expected = Conclusion(State.CANCELLED, "ledger")
    assert conclude(evidence) == expected
    assert conclude_local(jobs, evidence.attempts, NOTHING, queue_lives=True, is_skipped=True) == expected
