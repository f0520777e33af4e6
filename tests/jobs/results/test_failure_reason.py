"""The reason of a failed run by its job's log and its accounting, where no rank has said it."""

from __future__ import annotations

from typing import Any

import pytest

from disttrain.records.summary_types import Failure
from jobs.results.failure_reason import explain, needs_log
from jobs.results.job_log import parse_log_end
from jobs.slurm.attempts import AccountingRow
from jobs.slurm.states import State


def failure(rank: int, message: str) -> Failure:
    return Failure(rank=rank, host=f"n{rank}", time_s=1.0, error="E", message=message, traceback="", user_error=False)


LOST, OWN = failure(0, "Connection closed by peer"), failure(0, "no such column")
KILLED = "srun: error: n1: task 1: Killed\nsrun: error: n0: task 0: Terminated\n"
BY_SIGKILL = "rank 1 on n1 was killed by SIGKILL: from outside, or because its node had no memory left"
EXITED = "srun: error: n1: task 1: Exited with exit code 127\n"
OOM_KILL = f"slurmstepd: error: Detected 1 oom-kill event(s) in StepId=7.0.\n{KILLED}"
MORE = "request more with memory_gb_per_gpu"
# What sacct 22.05 says of OverMemoryKill: FAILED 9:0, derived 0:9, and no OUT_OF_MEMORY.
OVER = {"exit_code": 9, "derived_exit_signal": 9, "max_rss_bytes": 3 * 2**30, "requested_memory_bytes": 2**31}
OVER_MEMORY = f"out of memory: a rank used 3.00 GiB, and 2.00 GiB were requested per node: {MORE}"


@pytest.mark.parametrize(
    ("accounting", "failures", "log", "reason"),
    [
        ({}, (), KILLED, BY_SIGKILL),
        ({}, (LOST,), KILLED, BY_SIGKILL),
        ({}, (LOST,), EXITED, "rank 1 on n1 exited with code 127: see its log"),
        ({}, (), OOM_KILL, f"out of memory: {MORE}"),
        ({}, (LOST,), OOM_KILL, f"out of memory: {MORE}"),
        (OVER, (), "", OVER_MEMORY),
        (OVER, (LOST,), KILLED, OVER_MEMORY),
        # It used too much, but ended otherwise; or it was killed, with memory to spare.
        (OVER, (), EXITED, "rank 1 on n1 exited with code 127: see its log"),
        (OVER | {"max_rss_bytes": 2**31}, (), KILLED, BY_SIGKILL),
        (OVER | {"requested_memory_bytes": None}, (), KILLED, BY_SIGKILL),
        (OVER | {"max_rss_bytes": None}, (), KILLED, BY_SIGKILL),
        # The error of a rank is the reason; the log then only has consequences.
        (OVER, (OWN,), KILLED, "rank 0 on n0: E: no such column"),
        ({}, (LOST, failure(1, "no such column")), OOM_KILL, "rank 0 on n0: E: Connection closed by peer"),
        # srun speaks of a rank that has reported its error.
        (
            {},
            (LOST,),
            "srun: error: n0: task 0: Exited with exit code 1\n",
            "rank 0 on n0: E: Connection closed by peer; no error from rank 1, killed?",
        ),
        # Only the accounting has a signal. SIGTERM is what srun sends to the ranks that remain.
        ({"derived_exit_signal": 9}, (), "", "ended by SIGKILL; no rank reported an error: see its log"),
        ({"exit_signal": 64}, (), "", "ended by SIGRTMAX; no rank reported an error: see its log"),
        ({"exit_signal": 99}, (), "", "ended by signal 99; no rank reported an error: see its log"),
        ({"derived_exit_signal": 15}, (), "", "no rank reported an error: see its log"),
    ],
)
def test_reason_that_no_rank_gave(
    accounting: dict[str, Any], failures: tuple[Failure, ...], log: str, reason: str
) -> None:
    attempt = AccountingRow("7", state=State.FAILED, **accounting)
    assert explain(State.FAILED, attempt, failures, 2, parse_log_end(log, 2)) == reason


@pytest.mark.parametrize(
    ("state", "failures", "needed"),
    [
        (State.FAILED, (), True),
        (State.FAILED, (LOST,), True),
        (State.FAILED, (OWN,), False),
        (State.FAILED, (LOST, failure(1, "")), False),
        (State.COMPLETED, (), False),
        (State.CANCELLED, (), False),
        (State.OUT_OF_MEMORY, (), False),
    ],
)
def test_only_failures_without_a_reason_need_the_log(state: State, failures: tuple[Failure, ...], needed: bool) -> None:
    assert needs_log(state, failures, 2) == needed
