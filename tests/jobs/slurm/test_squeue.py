"""The queries to the controller: the jobs that squeue lists, why they wait, and the name of the cluster."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence

import pytest

from jobs.slurm.sacct_table import AccountingUnavailable
from jobs.slurm.squeue import QueuedJob, cluster_name, query_squeue
from jobs.slurm.states import State

LIST = """7_0|RUNNING|None|1700000000|10|mine|sweep:0123456789abcdef
7_1|PENDING|JobArrayTaskLimit|N/A|4294901700|sweep:0123456789abcdefx
8|CANCELLED|None|Unknown|-1|(null)
CLUSTER: other
9|HIBERNATING|None||٣|
"""


class Slurm:
    """A mock of Slurm's commands with a prepared answer, which stores what was asked."""

    def __init__(self, stdout: str = "", returncode: int = 0, stderr: str = "") -> None:
        self.done = subprocess.CompletedProcess([], returncode, stdout, stderr)
        self.command: list[str] = []
        self.environ: Mapping[str, str] = {}

    def __call__(self, command: Sequence[str], environ: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
        self.command, self.environ = list(command), environ
        return self.done


def test_jobs_by_id() -> None:
    slurm = Slurm(LIST)
    jobs = query_squeue(
        "s", user_id=1000, environ={"SQUEUE_FORMAT": "%A", "SLURM_CLUSTERS": "all", "SLURM_CONF": "c"}, run=slurm
    )
    assert jobs == {
        "7_0": QueuedJob("7_0", State.RUNNING, "None", "0123456789abcdef", 1_700_000_000, 10),
        "7_1": QueuedJob("7_1", State.PENDING, "JobArrayTaskLimit", priority=4_294_901_700),
        "8": QueuedJob("8", State.CANCELLED, "None"),
        "9": QueuedJob("9", State.UNKNOWN, "None"),
    }
    assert slurm.command == [
        "squeue", "--noheader", "--all", "--array", "--name=s", "--states=all", "--format=%i|%T|%r|%S|%Q|%k",
        "--user=1000",
    ]  # fmt: skip
    assert slurm.environ == {"SLURM_CONF": "c", "SLURM_TIME_FORMAT": "%s"}
    query_squeue("s", user_id=None, environ={}, run=slurm)
    assert not any(word.startswith("--user") for word in slurm.command)


@pytest.mark.parametrize(
    ("state", "reason", "explanation"),
    [
        (State.RUNNING, "None", None),
        (State.PENDING, "None", None),
        (State.PENDING, "Priority", None),
        (State.PENDING, "Resources", None),
        (State.PENDING, "QOSMaxJobsPerUserLimit", "waits (QOSMaxJobsPerUserLimit)"),
        (
            State.PENDING,
            "PartitionTimeLimit",
            "waits (PartitionTimeLimit): it will never start, because its time limit is over that of its partition",
        ),
        (State.REQUEUE_HOLD, "JobHeldUser", "waits (JobHeldUser): it is held; scontrol release 7 starts it"),
    ],
)
def test_why_a_job_waits(state: State, reason: str, explanation: str | None) -> None:
    assert QueuedJob("7", state, reason).explanation == explanation


def raising(error: Exception) -> object:
    def run(*_: object) -> None:
        raise error

    return run


@pytest.mark.parametrize(
    ("run", "line"),
    [
        (raising(FileNotFoundError("squeue")), "squeue cannot be queried: squeue"),
        (raising(subprocess.TimeoutExpired("squeue", 60)), "squeue did not answer within 60 s"),
        (Slurm(returncode=1, stderr="squeue: error:\n  refused\n"), "squeue failed: squeue: error: refused"),
    ],
)
def test_unavailable_squeue_is_one_line(run: Slurm, line: str) -> None:
    with pytest.raises(AccountingUnavailable) as caught:
        query_squeue("s", user_id=None, environ={}, run=run)
    assert str(caught.value) == line
    assert cluster_name(environ={}, run=run) is None


def test_the_name_of_the_cluster() -> None:
    assert cluster_name(environ={}, run=Slurm("Configuration data\nClusterName             = site\n")) == "site"
    assert cluster_name(environ={}, run=Slurm("slurmctld(primary) at host is UP\n")) is None
