"""The end of a job's log, on logs recorded from Slurm 22.05 and on the words of other releases."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.results.failures.job_log import LogEnd, Tasks, parse_log_end, read_log_end

# kill -9 of rank 1 (recorded). srun ends the other rank then.
KILLED = """\
[W1130 06:57:54.833718556 socket.cpp:207] [c10d] The hostname of the client socket cannot be retrieved. err=-3
srun: error: node2: task 1: Killed
srun: launch/slurm: _step_signal: Terminating StepId=18.0
slurmstepd-node1: error: *** STEP 18.0 ON node1 CANCELLED AT 2026-11-30T06:57:57 ***
srun: error: node1: task 0: Terminated
srun: Force Terminated StepId=18.0
"""
PREEMPTED = """\
slurmstepd: error: *** JOB 18 ON node1 CANCELLED AT 2026-11-30T06:50:01 DUE TO PREEMPTION ***
srun: error: node[1-2]: tasks 0-1: Terminated
"""


@pytest.mark.parametrize(
    ("text", "end"),
    [
        (KILLED, "rank 1 on node2 was killed by SIGKILL"),
        # A requeued job appends to its log: the last attempt counts.
        (PREEMPTED + KILLED, "rank 1 on node2 was killed by SIGKILL"),
        (KILLED + PREEMPTED, "ranks 0-1 on node[1-2] were ended by SIGTERM"),
        ("srun: error: node1: task 0: Exited with exit code 127\n", "rank 0 on node1 exited with code 127"),
        (
            "srun: error: n-1.site: task 3: Segmentation fault (core dumped)\n",
            "rank 3 on n-1.site was ended by SIGSEGV",
        ),
        ("srun: error: n1: tasks 0,2-3: Killed\n", "ranks 0,2-3 on n1 were killed by SIGKILL"),
        ("srun: error: n1: task 0: Out Of Memory\n", "rank 0 on n1 was ended by Out Of Memory"),
        ("srun: error: n1: task 0: Real-time signal 3\n", "rank 0 on n1 was ended by Real-time signal 3"),
        # srun's line follows a progress bar of rank 0, and ends as on Windows.
        ("\x1b[32m 50%|##  \rsrun: error: n1: task 0: Aborted\r\n", "rank 0 on n1 was ended by SIGABRT"),
        ("srun: error: n1: task 4: Killed\n", None),  # the run has four ranks
        ("srun: error: n1: task 0: \x1b[2JKilled\n", None),
        ("srun: error: Unable to create step for job 7: Job/step already completing or completed\n", None),
        ("RuntimeError: node1: task 1: Killed\n", None),
        ("", None),
    ],
)
def test_first_rank_to_end(text: str, end: str | None) -> None:
    first = parse_log_end(text, Tasks(4)).first
    assert (first and f"{first.place} {first.how}") == end


@pytest.mark.parametrize(
    ("line", "out_of_memory"),
    [
        ("slurmstepd: error: Detected 1 oom-kill event(s) in StepId=9.0. Some of your processes may have been", True),
        ("slurmstepd: error: Detected 2 oom_kill events in StepId=9.batch. Some of the step tasks have been OOM", True),
        ("slurmstepd-node1: error: StepId=9.0 exceeded memory limit (2123456 > 1048576), being killed", True),
        ("slurmstepd: error: Job 9 exceeded memory limit (20497 > 20480), being killed", True),
        ("slurmstepd: error: Exceeded job memory limit at some point.", True),
        ("slurmstepd: error: Exceeded step memory limit at some point.", True),
        ("srun: error: n1: task 0: Out Of Memory", True),
        ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.", False),
        ("UserError: the query exceeded memory limit (3 > 2)", False),
    ],
)
def test_out_of_memory(line: str, out_of_memory: bool) -> None:
    assert parse_log_end(f"first line\n{line}\n", Tasks(1)).out_of_memory == out_of_memory


def test_reads_the_end_of_a_large_damaged_log(tmp_path: Path) -> None:
    log = tmp_path / "7_0_0_log.err"
    with log.open("wb") as file:
        file.write(b"srun: error: n1: task 1: Exited with exit code 3\n\xff\xfe\0")
        file.seek(10 * 2**30)  # a sparse file
        file.write(b"\n\xff\xfe\0srun: error: n1: task 0: Killed\n")
    text = read_log_end(tmp_path, "7_0")
    assert len(text) <= 2**16
    end = parse_log_end(text, Tasks(2))
    assert end.first is not None
    assert end.first.tasks == {0}


def test_no_log_can_be_read(tmp_path: Path) -> None:
    (tmp_path / "7_0_log.err").mkdir()
    os.mkfifo(tmp_path / "8_0_log.err")  # opened, it would wait for a writer
    assert [read_log_end(tmp_path, job_id) for job_id in ("7", "8", "9")] == ["", "", ""]


@given(st.text(alphabet="srun: error: n1[]-,task0129Kild\r\n\x1b\0é"), st.integers(1, 3))
def test_any_text_is_parsed(text: str, world_size: int) -> None:
    assert isinstance(parse_log_end(f"srun: error: n1: task {text}", Tasks(world_size)), LogEnd)
