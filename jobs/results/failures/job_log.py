"""The end of a job's log: what Slurm has written there about the end of the ranks."""

from __future__ import annotations

import re
import signal
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from disttrain.config.command.command_config import CommandConfig, is_command
from jobs.planning.allocation import Allocation

# srun's lines are the last ones of a log. Only this much is read: a log can have any size.
_TAIL_BYTES = 2**16

_TASKS_END = re.compile(
    r"srun: error: (?P<hosts>[\w.,\[\]-]{1,200}): tasks? (?P<tasks>[\d,-]{1,200}): "
    r"(?:Exited with exit code (?P<code>\d{1,3})|(?P<signal>[\w /-]{1,40}?)(?: \(core dumped\))?)\s*$",
    re.ASCII,
)
# What slurmstepd and srun of the releases since 18.08 write; a rank's own line, such as one of CUDA, is not meant.
_OUT_OF_MEMORY = re.compile(
    r"slurmstepd\S*: error: .*(?:oom[-_]kill event|exceeded (?:\w+ )?memory limit)|srun: error: .*: Out Of Memory\b",
    re.IGNORECASE,
)
# Lines of the batch script, and of slurmstepd about the program of a rank: what failed before any of our code ran.
_BEFORE_PYTHON = re.compile(
    r"(?:slurm_script|sbatch\S*): line \d+: (?P<line>.*)$|slurmstepd\S*: error: execve\(\): (?P<program>.*)$"
    r"|(?P<module>(?:Lmod has detected the following error|.*Unable to locate a modulefile for):? .*)$"
    r"|(?P<conda>(?:EnvironmentNameNotFound|EnvironmentLocationNotFound|CondaError|CommandNotFoundError): .*)$"
    r"|(?P<package>Error while finding module specification for .*|No module named submitit$)"
)
_MOST_EVIDENCE = 2  # lines
_SIGNAL_NAMES = {signal.strsignal(number): number.name for number in signal.Signals}


@dataclass(frozen=True)
class Tasks:
    """The tasks of a run that srun starts, and counts: its ranks, or a torchrun on each node.

    Attributes:
        count: The number of tasks.
        are_ranks: Whether each of them is a rank.
        run_script: Whether they run the user's own script, whose steps and checkpoints are not known.
    """

    count: int
    are_ranks: bool = True
    run_script: bool = False

    @classmethod
    def of(cls, run: Mapping[str, Any]) -> Tasks:
        """The tasks of a run of plan.json."""
        if not is_command(run):
            return cls(run["world_size"])
        if CommandConfig.from_run(run).uses_torchrun:
            return cls(Allocation.parse(run["allocation"]).nodes, are_ranks=False, run_script=True)
        return cls(run["world_size"], run_script=True)


@dataclass(frozen=True)
class TasksEnd:
    """The end of some tasks of a job, as srun reports it.

    Attributes:
        tasks: The tasks. srun counts them as ranks are counted.
        place: The ranks, or torchruns, and their hosts as text.
        how: How they ended, as text.
        signal: The name of the signal that ended them, or Slurm's word for it; None if they exited with a code.
    """

    tasks: frozenset[int]
    place: str
    how: str
    signal: str | None = None


@dataclass(frozen=True)
class LogEnd:
    """What Slurm has written at the end of a job's log.

    Attributes:
        first: The tasks that ended first; srun then ends the others. None if srun has written nothing.
        out_of_memory: Whether Slurm has ended a process of the job for memory.
        before_python: What failed before a rank could start; None if nothing says so.
    """

    first: TasksEnd | None = None
    out_of_memory: bool = False
    before_python: str | None = None


def read_log_end(logs: Path, job_id: str) -> str:
    """The last bytes of the log to which srun writes, as text; empty if there is no such log.

    Args:
        logs: The folder of the logs.
        job_id: The id of the job.
    """
    path = logs / f"{job_id}_0_log.err"
    try:
        if not path.is_file():
            return ""
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - _TAIL_BYTES))
            return file.read(_TAIL_BYTES).decode(errors="replace")
    except OSError:
        return ""


def parse_log_end(text: str, tasks: Tasks) -> LogEnd:
    """What Slurm has written at the end of a log.

    Args:
        text: The end of the log.
        tasks: The tasks of the run.

    Returns:
        What it says of the last attempt, because a requeued job appends to its log: a task ends once in an attempt.

    Example:
        >>> end = parse_log_end("srun: error: n2: task 1: Killed\\nsrun: error: n1: task 0: Terminated\\n", Tasks(2))
        >>> end.first.place, end.first.how
        ('rank 1 on n2', 'was killed by SIGKILL')
    """
    lines = text.split("\n")
    first: TasksEnd | None = None
    ended: set[int] = set()
    for line in reversed(lines):
        end = _tasks_end(line, tasks)
        if end is None:
            continue
        if ended & end.tasks:
            break
        ended |= end.tasks
        first = end
    return LogEnd(first, any(map(_OUT_OF_MEMORY.search, lines)), _before_python(lines))


def _before_python(lines: Sequence[str]) -> str | None:
    """The first lines of a log that say what failed before Python, without the same one twice."""
    found: dict[str, None] = {}
    for line in lines:
        match = _BEFORE_PYTHON.search(line.strip())
        if match is not None:
            found[next(filter(None, match.groups()))] = None
    return "; ".join(list(found)[:_MOST_EVIDENCE]) or None


def _tasks_end(line: str, tasks: Tasks) -> TasksEnd | None:
    """What a line says about the end of tasks; None for any other line."""
    match = _TASKS_END.search(line)
    if match is None:
        return None
    ended = frozenset(_numbers(match["tasks"], range(tasks.count)))
    if not ended:
        return None
    noun = "rank" if len(ended) == 1 else "ranks"
    place = f"{noun} {match['tasks']} on {match['hosts']}"
    if not tasks.are_ranks:
        place = f"torchrun on {match['hosts']}"
    if match["code"] is not None:
        return TasksEnd(ended, place, f"exited with code {int(match['code'])}")
    name = _SIGNAL_NAMES.get(match["signal"], match["signal"])
    verb = "killed" if name == signal.SIGKILL.name else "ended"
    if len(ended) == 1:
        return TasksEnd(ended, place, f"was {verb} by {name}", name)
    return TasksEnd(ended, place, f"were {verb} by {name}", name)


def _numbers(listed: str, known: Collection[int]) -> Iterator[int]:
    """The tasks in srun's list that the run has.

    Example:
        >>> list(_numbers("0-1,3,9-99999", range(4)))
        [0, 1, 3]
    """
    for part in listed.split(","):
        first, _, last = part.partition("-")
        if first.isdigit() and (last or first).isdigit():
            yield from (task for task in known if int(first) <= task <= int(last or first))
