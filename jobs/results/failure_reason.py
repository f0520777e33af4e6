"""The reason why a run did not complete, in one line."""

from __future__ import annotations

import re
import signal
from collections.abc import Collection, Sequence

from disttrain.records.summary_types import Failure
from jobs.results.job_log import LogEnd
from jobs.slurm.attempts import AccountingRow
from jobs.slurm.states import State

# The messages of gloo and NCCL when the process at the other end of a connection has exited.
_LOST_PEER = re.compile(r"[Cc]onnection (closed|reset)|[Bb]roken pipe|remote process exited|socket.*closed", re.DOTALL)
_MORE_MEMORY = "request more with memory_gb_per_gpu"


def explain(
    state: State, attempt: AccountingRow | None, failures: Sequence[Failure], world_size: int, log_end: LogEnd
) -> str:
    """Why a run did not complete, in one line.

    If Slurm ended the run, the reason is Slurm's: the ranks then only report that they lost a peer. In all other cases
    the reason is the failure of the first rank that failed, because the others fail as a consequence. A killed rank
    reports nothing, but srun does.

    Args:
        state: The final state of the run.
        attempt: The latest attempt, if there is one in the accounting.
        failures: The failures that ranks reported, earliest first.
        world_size: The number of ranks.
        log_end: What Slurm has written in the job's log; read only if `needs_log`.
    """
    if state is State.OUT_OF_MEMORY:
        return f"out of memory: {_MORE_MEMORY}"
    if state is State.TIMEOUT and attempt and attempt.timelimit_min:
        return f"time limit of {attempt.timelimit_min} min reached"
    if state is State.NODE_FAIL:
        return _failed_node(attempt)
    if state is not State.FAILED:
        return state.value.lower().replace("_", " ")
    if needs_log(state, failures, world_size):
        reason = _by_slurm(attempt, _silent_ranks(failures, world_size), log_end)
        if reason is not None:
            return reason
    if failures:
        return _first_failure(failures, world_size)
    number = attempt and (attempt.exit_signal or attempt.derived_exit_signal)
    if number and number != signal.SIGTERM:  # with SIGTERM, srun ends the ranks that remain
        return f"ended by {_signal_name(number)}; no rank reported an error: see its log"
    return "no rank reported an error: see its log"


def needs_log(state: State, failures: Sequence[Failure], world_size: int) -> bool:
    """Whether only the job's log can have the reason: no rank reported one, or the first only lost its peer."""
    if state is not State.FAILED or not _silent_ranks(failures, world_size):
        return False
    return not failures or _LOST_PEER.search(failures[0].message) is not None


def _by_slurm(attempt: AccountingRow | None, silent: Collection[int], log_end: LogEnd) -> str | None:
    """The reason by the job's log and by its memory in the accounting; None if they do not have it."""
    if log_end.out_of_memory:
        return f"out of memory: {_MORE_MEMORY}"
    end = log_end.first
    if end is not None and not end.ranks & set(silent):
        return None  # it is the end of a rank that has reported an error
    # Slurm may end a job for memory without saying so in its states (OverMemoryKill), and so does the kernel.
    was_killed = end is None or end.signal == signal.SIGKILL.name
    over_memory = _over_memory(attempt)
    if was_killed and over_memory is not None:
        return f"out of memory: {over_memory}: {_MORE_MEMORY}"
    if end is None:
        return None
    if was_killed:
        return f"{end.place} {end.how}: from outside, or because its node had no memory left"
    return f"{end.place} {end.how}: see its log"


def _over_memory(attempt: AccountingRow | None) -> str | None:
    """How much more memory a rank alone has used than was requested for its node; None if it has not."""
    if attempt is None or not attempt.max_rss_bytes or not attempt.requested_memory_bytes:
        return None
    if attempt.max_rss_bytes <= attempt.requested_memory_bytes:
        return None
    used, requested = (size / 2**30 for size in (attempt.max_rss_bytes, attempt.requested_memory_bytes))
    return f"a rank used {used:.2f} GiB, and {requested:.2f} GiB were requested per node"


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


def _failed_node(attempt: AccountingRow | None) -> str:
    if attempt is None:
        return "a node failed"
    return f"node {attempt.failed_node or attempt.node_list} failed"


def _first_failure(failures: Sequence[Failure], world_size: int) -> str:
    first = failures[0]
    reason = f"rank {first.rank} on {first.host}: {first.error}: {' '.join(first.message.split())}"
    # A killed rank writes no failure. The first rank with a failure may only have lost its connection to it.
    silent = _silent_ranks(failures, world_size)
    if silent and _LOST_PEER.search(first.message):
        return f"{reason}; no error from rank {', '.join(map(str, silent))}, killed?"
    return reason
