"""The base of all Slurm tests: a job of two gloo ranks on two nodes, submitted by submitit, with its sacct row."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Mapping
from pathlib import Path

import pytest
import submitit

from jobs.environ import clean_environ
from jobs.results.failures.failure_reason import explain
from jobs.results.failures.job_log import Tasks, parse_log_end, read_log_end
from jobs.results.run_records import RunRecords
from jobs.slurm.attempts import AccountingRow
from jobs.slurm.sacct import query_sacct

pytestmark = pytest.mark.slurm


def test_two_ranks_on_two_nodes(on_slurm: Mapping[str, str], tmp_path: Path) -> None:
    def rank() -> tuple[str, float]:
        import socket

        import torch

        from disttrain.distributed.group import process_group
        from disttrain.environment.rank_env import RankEnv

        env = RankEnv.from_environ(os.environ)
        with process_group(env, "cpu") as group:
            return socket.gethostname(), float(group.sum(torch.tensor(env.rank + 1.0)))

    since_s = time.time()
    executor = submitit.SlurmExecutor(folder=tmp_path)
    executor.update_parameters(
        nodes=2, ntasks_per_node=1, gpus_per_node=1, time=5, wckey=None, srun_args=["-c", "1", "--kill-on-bad-exit=1"]
    )
    with clean_environ():
        job = executor.submit(rank)
    assert job.results() == [("node1", 3.0), ("node2", 3.0)]

    (row,) = _finished(job.job_id, since_s, "node[1-2]")
    assert row.state.is_success
    assert (row.exit_code, row.nodes, row.node_list, row.alloc_gpus) == (0, 2, "node[1-2]", 2)
    assert row.max_rss_bytes is not None
    assert row.max_rss_bytes > 50e6  # torch alone takes more
    assert row.queue_wait_s is not None
    assert row.elapsed_s is not None
    assert row.gpu_hours == 2 * row.elapsed_s / 3600


def test_rank_killed_above_its_requested_memory(on_slurm: Mapping[str, str], tmp_path: Path) -> None:
    """The cluster of the tests does not limit memory, so the rank kills itself, as Slurm or the kernel would do it."""

    def rank() -> None:
        memory = bytearray(os.urandom(4096) * 100_000)
        time.sleep(3)  # Slurm samples the memory once a second
        os.kill(os.getpid(), signal.SIGKILL * bool(memory))

    since_s = time.time()
    executor = submitit.SlurmExecutor(folder=tmp_path)
    executor.update_parameters(nodes=1, ntasks_per_node=1, time=5, mem="200M", wckey=None, srun_args=["-c", "1"])
    with clean_environ():
        job = executor.submit(rank)
    (row,) = _finished(job.job_id, since_s, "node")
    log_end = parse_log_end(read_log_end(tmp_path, job.job_id), Tasks(1))
    assert log_end.first is not None
    assert log_end.first.signal == "SIGKILL"
    assert row.requested_memory_bytes == 200 * 2**20
    reason = explain(row.state, row, RunRecords(), Tasks(1), log_end).text
    assert re.fullmatch(r"out of memory: a rank used 0\.\d\d GiB, and 0\.20 GiB were requested per node: .*", reason)


def _finished(job_id: str, since_s: float, nodes: str) -> tuple[AccountingRow, ...]:
    """sacct's rows after the end of the job, which sacct lists a moment after the results exist.

    This also waits until the job's last node is free: before, Slurm may list only some of the nodes of an ended job.
    And until slurmdbd has the job's submission, which may arrive after its end.
    """
    for _ in range(60):
        rows = query_sacct([job_id], environ=os.environ, since_s=since_s)
        if rows and rows[-1].state.is_finished and rows[-1].eligible_s and (rows[-1].node_list or "").startswith(nodes):
            break
        time.sleep(0.5)
    return rows
