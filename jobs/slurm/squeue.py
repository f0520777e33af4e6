"""What the controller knows of the jobs: squeue's list, and the name of the cluster."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from jobs.slurm.command import Runner, query_environ, run_command
from jobs.slurm.sacct_table import AccountingUnavailable
from jobs.slurm.states import State, parse_state

_CLUSTER_NAME = re.compile(r"^ClusterName\s*=\s*(\S+)", re.MULTILINE)
_MAX_ARRAY_SIZE = re.compile(r"^MaxArraySize\s*=\s*(\d+)", re.MULTILINE)
_TOKEN = re.compile(r"\bsweep:([0-9a-f]{16})\b")
CONFIG_COMMAND = ("scontrol", "show", "config")
_TIMES = {"SLURM_TIME_FORMAT": "%s"}  # seconds since 1970, which do not depend on a time zone
# The reasons of a job that waits as every job does: for its turn, for `max_running`, or for the job that it follows.
_USUAL = frozenset({
    "", "None", "Priority", "Resources", "BeginTime", "Cleaning", "JobArrayTaskLimit", "Dependency",
})  # fmt: skip
_ADVICE = {
    "JobHeldUser": "it is held; scontrol release {job} starts it",
    "JobHeldAdmin": "an administrator holds it",
    "PartitionTimeLimit": "it will never start, because its time limit is over that of its partition",
    "PartitionConfig": "it will never start, because its partition has no such nodes",
    "BadConstraints": "it will never start, because no node fits its constraints",
    "DependencyNeverSatisfied": "it will never start, because the job that it depends on has failed",
    "launch failed requeued held": "it is held after a failed launch; scontrol release {job} starts it",
}


@dataclass(frozen=True)
class QueuedJob:
    """A job, or a task of an array, that squeue lists: it waits, runs, or has ended a short time ago.

    Attributes:
        job_id: The id: ``123``, or ``123_4`` for a task of an array.
        state: Its state.
        reason: Slurm's word for why it waits.
        token: The token of the submission that sent it; None if it has none.
        start_s: The time at which it started or, of one that waits, is expected to start, in seconds since 1970; None
            if Slurm does not know it.
        priority: Its priority: of those that wait, Slurm considers the highest first; None if it is not known.
    """

    job_id: str
    state: State
    reason: str = ""
    token: str | None = None
    start_s: int | None = None
    priority: int | None = None

    @property
    def explanation(self) -> str | None:
        """Why it waits, in one line; None if it runs or only waits for its turn.

        Example:
            >>> QueuedJob("7_1", State.PENDING, "JobHeldUser").explanation
            'waits (JobHeldUser): it is held; scontrol release 7_1 starts it'
        """
        if not self.state.is_pending or self.reason in _USUAL:
            return None
        if self.reason not in _ADVICE:
            return f"waits ({self.reason})"
        return f"waits ({self.reason}): {_ADVICE[self.reason].format(job=self.job_id)}"


def query_squeue(
    name: str, *, user_id: int | None, environ: Mapping[str, str], run: Runner = run_command
) -> dict[str, QueuedJob]:
    """The jobs of this name that squeue lists, by id, with each task of an array separately.

    Args:
        name: The name of the jobs.
        user_id: The user whose jobs they are; None for all users.
        environ: The environment. SQUEUE_* variables, which change the output, are not passed on.
        run: A function that runs a command in an environment.

    Raises:
        AccountingUnavailable: squeue cannot be queried.
    """
    columns = "--format=%i|%T|%r|%S|%Q|%k"
    command = ["squeue", "--noheader", "--all", "--array", f"--name={name}", "--states=all", columns]
    if user_id is not None:
        command.append(f"--user={user_id}")
    jobs = {}
    for line in ask_controller(command, {**environ, **_TIMES}, run).splitlines():
        job_id, *values = line.strip().split("|", 5)  # the comment is last: it may have any character
        if len(values) == 5:  # with several clusters, each list has a title
            state, reason, start, priority, comment = values
            token = _TOKEN.search(comment)
            jobs[job_id] = QueuedJob(
                job_id, parse_state(state), reason, token and token[1], _number(start), _number(priority)
            )
    return jobs


def _number(text: str) -> int | None:
    """A number that squeue prints; None for a word such as N/A."""
    return int(text) if text.isascii() and text.isdecimal() else None


def comment_of(token: str) -> str:
    """The text in the comment of a job by which it is found again.

    Example:
        >>> comment_of("0123456789abcdef")
        'sweep:0123456789abcdef'
    """
    return f"sweep:{token}"


@dataclass(frozen=True)
class ClusterConfig:
    """What the controller says of the cluster on which this host submits; None where it does not say it.

    Attributes:
        name: Its name.
        max_array_size: The largest number of tasks of an array. Slurm limits the index, which begins with 0.
    """

    name: str | None = None
    max_array_size: int | None = None


def cluster_config(*, environ: Mapping[str, str], run: Runner = run_command) -> ClusterConfig:
    """Asks the controller for its configuration."""
    try:
        text = ask_controller(CONFIG_COMMAND, environ, run)
    except AccountingUnavailable:
        return ClusterConfig()
    name, size = _CLUSTER_NAME.search(text), _MAX_ARRAY_SIZE.search(text)
    # 1 turns arrays off: a job array of one run is sent as a plain job.
    return ClusterConfig(name[1] if name else None, max(1, int(size[1])) if size else None)


def cluster_name(*, environ: Mapping[str, str], run: Runner = run_command) -> str | None:
    """The name of the cluster on which this host submits; None if the controller does not say it."""
    return cluster_config(environ=environ, run=run).name


def ask_controller(command: Sequence[str], environ: Mapping[str, str], run: Runner) -> str:
    """The output of a command to the controller.

    Raises:
        AccountingUnavailable: It cannot be started, does not answer in time, or fails.
    """
    try:
        done = run(command, query_environ(environ))
    except subprocess.TimeoutExpired as error:
        raise AccountingUnavailable(f"{command[0]} did not answer within {error.timeout:.0f} s") from None
    except OSError as error:
        raise AccountingUnavailable(f"{command[0]} cannot be queried: {error}") from None
    if done.returncode != 0:
        raise AccountingUnavailable(f"{command[0]} failed: {' '.join(done.stderr.split())}")
    return done.stdout
