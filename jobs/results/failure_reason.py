"""The reason why a run did not complete, in one line."""

from __future__ import annotations

import re
from collections.abc import Sequence

from disttrain.records.summary_types import Failure
from jobs.slurm.attempts import AccountingRow
from jobs.slurm.states import State

# The messages of gloo and NCCL when the process at the other end of a connection has exited.
_LOST_PEER = re.compile(r"[Cc]onnection (closed|reset)|[Bb]roken pipe|remote process exited|socket.*closed", re.DOTALL)


def explain(state: State, attempt: AccountingRow | None, failures: Sequence[Failure], world_size: int) -> str:
    """Why a run did not complete, in one line.

    If Slurm ended the run, the reason is Slurm's: the ranks then only report that they lost a peer. In all other cases
    the reason is the failure of the first rank that failed, because the others fail as a consequence.

    Args:
        state: The final state of the run.
        attempt: The latest attempt, if there is one in the accounting.
        failures: The failures that ranks reported, earliest first.
        world_size: The number of ranks.
    """
    if state is State.OUT_OF_MEMORY:
        return "out of memory: request more with memory_gb_per_gpu"
    if state is State.TIMEOUT and attempt and attempt.timelimit_min:
        return f"time limit of {attempt.timelimit_min} min reached"
    if state is State.NODE_FAIL:
        return _failed_node(attempt)
    if state is not State.FAILED:
        return state.value.lower().replace("_", " ")
    if failures:
        return _first_failure(failures, world_size)
    if attempt and attempt.exit_signal:
        return f"ended by signal {attempt.exit_signal}; no rank reported an error: see its log"
    return "no rank reported an error: see its log"


def _failed_node(attempt: AccountingRow | None) -> str:
    if attempt is None:
        return "a node failed"
    return f"node {attempt.failed_node or attempt.node_list} failed"


def _first_failure(failures: Sequence[Failure], world_size: int) -> str:
    first = failures[0]
    reason = f"rank {first.rank} on {first.host}: {first.error}: {' '.join(first.message.split())}"
    # A killed rank writes no failure. The first rank with a failure may only have lost its connection to it.
    silent = sorted(set(range(world_size)) - {failure.rank for failure in failures})
    if silent and _LOST_PEER.search(first.message):
        return f"{reason}; no error from rank {', '.join(map(str, silent))}, killed?"
    return reason
