"""The reason why a run did not complete: its kind, and one line with the evidence."""

from __future__ import annotations

import pwd
import signal
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from disttrain.errors import CollectiveTimeout
from disttrain.records.lifecycle.attempt_log import not_resumed_cause
from disttrain.records.summary_types import Failure
from jobs.results.failures.failure_kind import Kind, kind_of, lost_peer
from jobs.results.failures.job_log import LogEnd
from jobs.results.run_records import RunRecords
from jobs.slurm.attempts import AccountingRow
from jobs.slurm.states import State

_NOT_RESUMED: dict[str, Kind] = {
    "time limit": "time limit", "preemption": "preemption", "node failure": "node failure", "termination": "cancelled",
}  # fmt: skip
_MORE_MEMORY = "request more with memory_gb_per_gpu"


@dataclass(frozen=True)
class Reason:
    """Why a run did not complete."""

    kind: Kind
    text: str


def explain(
    state: State, attempt: AccountingRow | None, records: RunRecords, world_size: int, log_end: LogEnd
) -> Reason:
    """Why a run did not complete.

    If Slurm ended the run, the reason is Slurm's: the ranks then only report that they lost a peer. In all other cases
    the reason is the failure of the first rank that failed, because the others fail as a consequence. A killed rank
    reports nothing, but srun does. A rank that gave up waiting for another one says which one that was. A rank that
    only lost its connection to another one is never the reason.

    Args:
        state: The final state of the run.
        attempt: The latest attempt, if there is one in the accounting.
        records: The records of the run.
        world_size: The number of ranks.
        log_end: What Slurm has written in the job's log; read only if `needs_log`.
    """
    if state is not State.FAILED:
        return _ended_by_slurm(state, attempt, records)
    gave_up = _gave_up(records.failures)
    if gave_up is not None:
        return Reason("communication", gave_up.message)
    if needs_log(state, records.failures, world_size):
        reason = _by_slurm(attempt, records, _silent_ranks(records.failures, world_size), log_end)
        if reason is not None:
            return reason
    if records.failures:
        return _first_failure(records.failures, world_size)
    return _by_exit(attempt, has_started=records.last_step is not None or log_end.first is not None)


def _ended_by_slurm(state: State, attempt: AccountingRow | None, records: RunRecords) -> Reason:
    """The reason by the state alone, with how far the run came."""
    if state is State.OUT_OF_MEMORY:
        return Reason("host memory", f"out of memory: {_MORE_MEMORY}")
    if state in (State.TIMEOUT, State.DEADLINE):
        return Reason("time limit", f"{_time_limit(attempt)}{_progress(records)}")
    if state is State.PREEMPTED:
        return Reason("preemption", f"preempted{_progress(records)}")
    if state is State.NODE_FAIL:
        return Reason("node failure", f"{_failed_node(attempt)}{_progress(records)}")
    if state is State.CANCELLED:
        return Reason("cancelled", _cancelled(attempt))
    return Reason("unknown", state.value.lower().replace("_", " "))


def _by_exit(attempt: AccountingRow | None, *, has_started: bool) -> Reason:
    """The reason by what is left: the signal or the exit code of the job."""
    number = attempt and (attempt.exit_signal or attempt.derived_exit_signal)
    if number and number != signal.SIGTERM:  # with SIGTERM, srun ends the ranks that remain
        return Reason("signal", f"ended by {_signal_name(number)}; no rank reported an error: see its log")
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


def needs_log(state: State, failures: Sequence[Failure], world_size: int) -> bool:
    """Whether only the job's log can have the reason: no rank reported one, or all only lost a peer."""
    if state is not State.FAILED or not _silent_ranks(failures, world_size):
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
    if end is not None and not end.ranks & set(silent):
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


def _progress(records: RunRecords) -> str:
    """How far a run came that was ended from outside, and from where it resumes."""
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


def _signal_name(number: int) -> str:
    """The name of a signal.

    Example:
        >>> _signal_name(9), _signal_name(125)
        ('SIGKILL', 'signal 125')
    """
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _silent_ranks(failures: Sequence[Failure], world_size: int) -> list[int]:
    """The ranks without a failure, in order."""
    return sorted(set(range(world_size)) - {failure.rank for failure in failures})


def _first_failure(failures: Sequence[Failure], world_size: int) -> Reason:
    """The first failure that is not the loss of a peer. If all are, the silent ranks are named."""
    first = next((failure for failure in failures if not lost_peer(failure)), failures[0])
    message = " ".join(first.message.split())
    cause = not_resumed_cause(first)
    if cause is not None:
        return Reason(_NOT_RESUMED.get(cause, "no progress"), message)
    text = f"rank {first.rank} on {first.host}: {first.error}: {message}"
    silent = _silent_ranks(failures, world_size)
    if silent and lost_peer(first):
        return Reason("communication", f"{text}; no error from rank {', '.join(map(str, silent))}, killed?")
    return Reason(kind_of(first), text)
