"""The reason why a run did not complete: its kind, and one line with the evidence."""

from __future__ import annotations

import pwd
import signal
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from disttrain.environment.signal_name import signal_name
from disttrain.errors import CollectiveTimeout
from disttrain.records.lifecycle.attempt_log import not_resumed_cause
from disttrain.records.summary_types import Failure
from jobs.results.failures.failure_kind import Kind, kind_of, lost_peer
from jobs.results.failures.job_log import LogEnd, Tasks
from jobs.results.run_records import RunRecords
from jobs.slurm.attempts import AccountingRow
from jobs.slurm.states import State

_NOT_RESUMED: dict[str, Kind] = {
    "time limit": "time limit", "preemption": "preemption", "node failure": "node failure", "termination": "cancelled",
    "request": "unknown",
}  # fmt: skip
_MORE_MEMORY = "request more with memory_gb_per_gpu"


@dataclass(frozen=True)
class Reason:
    """Why a run did not complete."""

    kind: Kind
    text: str


def explain(state: State, attempt: AccountingRow | None, records: RunRecords, tasks: Tasks, log_end: LogEnd) -> Reason:
    """Why a run did not complete.

    If Slurm ended the run, the reason is Slurm's: the ranks then only report that they lost a peer. In all other cases
    the reason is the failure of the first rank that failed, because the others fail as a consequence. A killed rank
    reports nothing, but srun does. A rank that gave up waiting for another one says which one that was. A rank that
    only lost its connection to another one is never the reason.

    Args:
        state: The final state of the run.
        attempt: The latest attempt, if there is one in the accounting.
        records: The records of the run.
        tasks: The tasks of the run.
        log_end: What Slurm has written in the job's log; read only if `needs_log`.
    """
    if state is not State.FAILED:
        return _ended_by_slurm(state, attempt, _progress(records, tasks))
    gave_up = _gave_up(records.failures)
    if gave_up is not None:
        return Reason("communication", gave_up.message)
    if needs_log(state, records.failures, tasks.count):
        reason = _by_slurm(attempt, records, _silent_tasks(records.failures, tasks.count), log_end)
        if reason is not None:
            return reason
    if records.failures:
        return _first_failure(records, tasks, attempt)
    return _by_exit(attempt, has_started=records.last_step is not None or log_end.first is not None)


def _ended_by_slurm(state: State, attempt: AccountingRow | None, progress: str) -> Reason:
    """The reason by the state alone, with how far the run came."""
    if state is State.OUT_OF_MEMORY:
        return Reason("host memory", f"out of memory: {_MORE_MEMORY}")
    if state in (State.TIMEOUT, State.DEADLINE):
        return Reason("time limit", f"{_time_limit(attempt)}{progress}")
    if state is State.PREEMPTED:
        return Reason("preemption", f"preempted{progress}")
    if state is State.NODE_FAIL:
        return Reason("node failure", f"{_failed_node(attempt)}{progress}")
    if state is State.CANCELLED:
        return Reason("cancelled", _cancelled(attempt))
    return Reason("unknown", state.value.lower().replace("_", " "))


def _by_exit(attempt: AccountingRow | None, *, has_started: bool) -> Reason:
    """The reason by what is left: the signal or the exit code of the job."""
    number = attempt and (attempt.exit_signal or attempt.derived_exit_signal)
    if number and number != signal.SIGTERM:  # with SIGTERM, srun ends the ranks that remain
        return Reason("signal", f"ended by {signal_name(number)}; no rank reported an error: see its log")
    if attempt and attempt.exit_code and attempt.derived_exit_code == 0 and not has_started:
        # srun, which is a step, did not fail.
        text = f"the batch script ended with exit code {attempt.exit_code} before a rank started: see setup and its log"
        return Reason("before Python", text)
    return Reason("unknown", "no rank reported an error: see its log")


def _gave_up(failures: Sequence[Failure]) -> Failure | None:
    """The failure of the first rank that gave up waiting for another one; it names that rank.

    When a rank gives up, the others lose their connection to it, and by their clocks that may be earlier.
    """
    for failure in failures:
        if failure.error == CollectiveTimeout.__name__:
            return failure
        if not lost_peer(failure):
            return None
    return None


def needs_log(state: State, failures: Sequence[Failure], task_count: int) -> bool:
    """Whether only the job's log can have the reason: no rank reported one, or all only lost a peer."""
    if state is not State.FAILED or not _silent_tasks(failures, task_count):
        return False
    return all(map(lost_peer, failures))


def _by_slurm(
    attempt: AccountingRow | None, records: RunRecords, silent: Collection[int], log_end: LogEnd
) -> Reason | None:
    """The reason by the job's log and by its memory in the accounting; None if they do not have it."""
    if log_end.out_of_memory:
        return Reason("host memory", f"out of memory: {_MORE_MEMORY}")
    end = log_end.first
    # A run continues after a line of `setup` that failed and that it does not need.
    was_signalled = end is not None and end.signal is not None
    if log_end.before_python is not None and records.last_step is None and not was_signalled:
        return Reason("before Python", f"before Python: {log_end.before_python}")
    if end is not None and not end.tasks & set(silent):
        return None  # it is the end of a rank that has reported an error
    # Slurm may end a job for memory without saying so in its states (OverMemoryKill), and so does the kernel.
    was_killed = end is None or end.signal == signal.SIGKILL.name
    over_memory = _over_memory(attempt)
    if was_killed and over_memory is not None:
        return Reason("host memory", f"out of memory: {over_memory}: {_MORE_MEMORY}")
    if end is None:
        return None
    if was_killed:
        return Reason("signal", f"{end.place} {end.how}: from outside, or because its node had no memory left")
    return Reason("signal" if end.signal else "unknown", f"{end.place} {end.how}: see its log")


def _over_memory(attempt: AccountingRow | None) -> str | None:
    """How much more memory a rank alone has used than was requested for its node; None if it has not."""
    if attempt is None or not attempt.max_rss_bytes or not attempt.requested_memory_bytes:
        return None
    if attempt.max_rss_bytes <= attempt.requested_memory_bytes:
        return None
    used, requested = (size / 2**30 for size in (attempt.max_rss_bytes, attempt.requested_memory_bytes))
    return f"a rank used {used:.2f} GiB, and {requested:.2f} GiB were requested per node"


def _time_limit(attempt: AccountingRow | None) -> str:
    if attempt is None or not attempt.timelimit_min:
        return "time limit reached"
    return f"time limit of {attempt.timelimit_min} min reached"


def _progress(records: RunRecords, tasks: Tasks) -> str:
    """How far a run came that was ended from outside, and from where it resumes."""
    if tasks.run_script:  # it may have checkpoints of its own
        step = f" at step {records.last_step}" if records.last_step else ""
        return f"{step}; sweep submit starts the script again"
    if not records.last_step:
        return " before the first step"
    if records.saved_step:
        return f" at step {records.last_step}; sweep submit resumes it after step {records.saved_step}"
    return f" at step {records.last_step}; it has no checkpoint, so sweep submit starts it from the beginning"


def _cancelled(attempt: AccountingRow | None) -> str:
    if attempt is None or attempt.cancelled_by is None:
        return "cancelled"
    try:
        return f"cancelled by {pwd.getpwuid(attempt.cancelled_by).pw_name}"
    except KeyError:
        return f"cancelled by user {attempt.cancelled_by}"


def _failed_node(attempt: AccountingRow | None) -> str:
    if attempt is None:
        return "a node failed"
    return f"node {attempt.failed_node or attempt.node_list} failed"


def _silent_tasks(failures: Sequence[Failure], task_count: int) -> list[int]:
    """The tasks without a failure, in order."""
    return sorted(set(range(task_count)) - {failure.rank for failure in failures})


def _first_failure(records: RunRecords, tasks: Tasks, attempt: AccountingRow | None) -> Reason:
    """The first failure that is not the loss of a peer. If all are, the silent ranks are named."""
    failures = records.failures
    first = next((failure for failure in failures if not lost_peer(failure)), failures[0])
    message = " ".join(first.message.split())
    cause = not_resumed_cause(first)
    if cause is not None:
        return Reason(_NOT_RESUMED.get(cause, "no progress"), message)
    place = f"rank {first.rank}" if tasks.are_ranks else "torchrun"
    text = f"{place} on {first.host}: {first.error}: {message}"
    if tasks.run_script and records.last_step:
        text += f" (step {records.last_step})"
    silent = _silent_tasks(failures, tasks.count)
    if silent and lost_peer(first):
        noun = "rank" if tasks.are_ranks else "node"
        return Reason("communication", f"{text}; no error from {noun} {', '.join(map(str, silent))}, killed?")
    if first.error == signal.SIGKILL.name:  # a script that was killed: its rank lives and says so
        over_memory = _over_memory(attempt)
        if over_memory is not None:
            return Reason("host memory", f"out of memory: {over_memory}: {_MORE_MEMORY}")
        return Reason("signal", f"{text}: from outside, or because its node had no memory left")
    return Reason(kind_of(first), text)
