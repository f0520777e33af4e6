"""The reason of a failed run by its job's log and its accounting, where no rank has said it."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from disttrain.records.summary_types import Failure
from jobs.results.failures.failure_kind import kind_of
from jobs.results.failures.failure_reason import explain, needs_log
from jobs.results.failures.job_log import Tasks, parse_log_end
from jobs.results.run_records import RunRecords
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
        ({}, (LOST, failure(1, "no such column")), OOM_KILL, "rank 1 on n1: E: no such column"),
        ({}, (LOST, failure(1, "Connection reset")), "", "rank 0 on n0: E: Connection closed by peer"),
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
    explained = explain(State.FAILED, attempt, RunRecords(failures=failures), Tasks(2), parse_log_end(log, Tasks(2)))
    assert explained.text == reason


GAVE_UP = dataclasses.replace(failure(0, "rank 1 on n1 did not enter barrier 7"), error="CollectiveTimeout")


@pytest.mark.parametrize(
    ("failures", "reason"),
    [
        ((GAVE_UP, LOST), GAVE_UP.message),
        # By the clock of its host, a rank lost the other one before that gave up.
        ((LOST, GAVE_UP), GAVE_UP.message),
        # An error is the cause of the wait.
        ((OWN, GAVE_UP), "rank 0 on n0: E: no such column"),
    ],
)
def test_a_rank_that_gave_up_names_the_late_one(failures: tuple[Failure, ...], reason: str) -> None:
    attempt = AccountingRow("7", state=State.FAILED)
    log_end = parse_log_end(KILLED, Tasks(3))
    assert explain(State.FAILED, attempt, RunRecords(failures=failures), Tasks(3), log_end).text == reason


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


AT_40 = RunRecords(last_step=40, saved_step=30)


@pytest.mark.parametrize(
    ("state", "accounting", "records", "kind", "text"),
    [
        (
            State.TIMEOUT, {"timelimit_min": 60}, AT_40, "time limit",
            "time limit of 60 min reached at step 40; sweep submit resumes it after step 30",
        ),
        (
            State.TIMEOUT, {}, RunRecords(last_step=40), "time limit",
            "time limit reached at step 40; it has no checkpoint, so sweep submit starts it from the beginning",
        ),
        (
            State.TIMEOUT, {"timelimit_min": 1}, RunRecords(), "time limit",
            "time limit of 1 min reached before the first step",
        ),
        (
            State.PREEMPTED, {}, AT_40, "preemption",
            "preempted at step 40; sweep submit resumes it after step 30",
        ),
        (State.NODE_FAIL, {"failed_node": "n7"}, RunRecords(), "node failure", "node n7 failed before the first step"),
        (State.CANCELLED, {"cancelled_by": 0}, AT_40, "cancelled", "cancelled by root"),
        (State.CANCELLED, {"cancelled_by": 2**31 - 9}, AT_40, "cancelled", "cancelled by user 2147483639"),
        (State.CANCELLED, {}, AT_40, "cancelled", "cancelled"),
        (State.OUT_OF_MEMORY, {}, AT_40, "host memory", f"out of memory: {MORE}"),
        (State.BOOT_FAIL, {}, AT_40, "unknown", "boot fail"),
        (
            State.FAILED, {"exit_code": 3, "derived_exit_code": 0}, RunRecords(), "before Python",
            "the batch script ended with exit code 3 before a rank started: see setup and its log",
        ),
        (
            State.FAILED, {"exit_code": 1, "derived_exit_code": 1}, RunRecords(), "unknown",
            "no rank reported an error: see its log",
        ),
    ],
)  # fmt: skip
def test_what_ended_a_run_from_outside(
    state: State, accounting: dict[str, Any], records: RunRecords, kind: str, text: str
) -> None:
    attempt = AccountingRow("7", state=state, **accounting)
    reason = explain(state, attempt, records, Tasks(2), parse_log_end("", Tasks(2)))
    assert (reason.kind, reason.text) == (kind, text)


@pytest.mark.parametrize(
    ("error", "message", "kind"),
    [
        ("OutOfMemoryError", "CUDA out of memory. Tried to allocate 2.00 GiB", "GPU memory"),
        ("RuntimeError", "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", "GPU memory"),
        ("MemoryError", "", "host memory"),
        ("_ArrayMemoryError", "Unable to allocate 9 TiB", "host memory"),
        ("RuntimeError", "[enforce fail] DefaultCPUAllocator: can't allocate memory", "host memory"),
        ("RuntimeError", "DataLoader worker (pid 7) is killed by signal: Killed. ", "host memory"),
        ("OSError", "[Errno 28] No space left on device: '/x'", "disk full"),
        ("OSError", "[Errno 122] Disk quota exceeded", "disk full"),
        ("ImportError", "libcudart.so.12: cannot open shared object file: No such file or directory", "import error"),
        ("ModuleNotFoundError", "No module named 'x'", "import error"),
        ("FileNotFoundError", "[Errno 2] No such file or directory: 'train.tsv'", "missing file"),
        ("UserError", "dataset '/data/x' does not exist", "missing file"),
        ("UserError", "lr is 'fast', not a number", "user error"),
        ("RuntimeError", "Timed out waiting 1800000ms for recv operation to complete", "communication"),
        ("ValueError", "bad", "exception"),
    ],
)
def test_kind_of_an_error(error: str, message: str, kind: str) -> None:
    failed = Failure(
        rank=0, host="n0", time_s=1.0, error=error, message=message, traceback="", user_error=error == "UserError"
    )
    assert kind_of(failed) == kind


def test_a_run_that_is_not_resumed_says_why_itself() -> None:
    message = "time limit: stopped after step 40, with a checkpoint; it does not resume by itself: requeue is off"
    failed = Failure(rank=0, host="n0", time_s=1.0, error="NotResumed", message=message, traceback="", user_error=True)
    records = RunRecords(failures=(failed,))
    reason = explain(State.FAILED, AccountingRow("7", exit_code=85), records, Tasks(2), parse_log_end("", Tasks(2)))
    assert (reason.kind, reason.text) == ("time limit", message)


@pytest.mark.parametrize(
    ("log", "evidence"),
    [
        (
            "/var/spool/slurmd/job00012/slurm_script: line 18: module: command not found\n"
            "slurmstepd: error: execve(): /envs/python: No such file or directory\n"
            "slurmstepd: error: execve(): /envs/python: No such file or directory\n"
            "srun: error: n1: tasks 0-1: Exited with exit code 2\n",
            "module: command not found; /envs/python: No such file or directory",
        ),
        (
            'Lmod has detected the following error:  The following module(s) are unknown: "cuda/99"\n',
            'Lmod has detected the following error:  The following module(s) are unknown: "cuda/99"',
        ),
        (
            "EnvironmentNameNotFound: Could not find conda environment: train\n",
            "EnvironmentNameNotFound: Could not find conda environment: train",
        ),
        (
            "/usr/bin/python3: Error while finding module specification for 'submitit.core._submit'"
            " (ModuleNotFoundError: No module named 'submitit')\n",
            "Error while finding module specification for 'submitit.core._submit'"
            " (ModuleNotFoundError: No module named 'submitit')",
        ),
    ],
)
def test_a_failure_before_python(log: str, evidence: str) -> None:
    attempt = AccountingRow("7", exit_code=2, derived_exit_code=2)
    reason = explain(State.FAILED, attempt, RunRecords(), Tasks(2), parse_log_end(log, Tasks(2)))
    assert (reason.kind, reason.text) == ("before Python", f"before Python: {evidence}")
