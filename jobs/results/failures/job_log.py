"""The end of a job's log: what Slurm has written there about the end of the ranks."""

from __future__ import annotations

import re
import signal
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

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
class RanksEnd:
    """The end of some ranks of a job, as srun reports it.

    Attributes:
        ranks: The ranks. srun counts its tasks as ranks are counted.
        place: The ranks and their hosts as text.
        how: How they ended, as text.
        signal: The name of the signal that ended them, or Slurm's word for it; None if they exited with a code.
    """

    ranks: frozenset[int]
    place: str
    how: str
    signal: str | None = None


@dataclass(frozen=True)
class LogEnd:
    """What Slurm has written at the end of a job's log.

    Attributes:
        first: The ranks that ended first; srun then ends the others. None if srun has written nothing.
        out_of_memory: Whether Slurm has ended a process of the job for memory.
        before_python: What failed before a rank could start; None if nothing says so.
    """

    first: RanksEnd | None = None
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


def parse_log_end(text: str, world_size: int) -> LogEnd:
    """What Slurm has written at the end of a log.

    Args:
        text: The end of the log.
        world_size: The number of ranks.

    Returns:
        What it says of the last attempt, because a requeued job appends to its log: a rank ends once in an attempt.

    Example:
        >>> end = parse_log_end("srun: error: n2: task 1: Killed\\nsrun: error: n1: task 0: Terminated\\n", 2)
        >>> end.first.place, end.first.how
        ('rank 1 on n2', 'was killed by SIGKILL')
    """
    lines = text.split("\n")
    first: RanksEnd | None = None
    ended: set[int] = set()
    for line in reversed(lines):
        end = _ranks_end(line, world_size)
        if end is None:
            continue
        if ended & end.ranks:
            break
        ended |= end.ranks
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


def _ranks_end(line: str, world_size: int) -> RanksEnd | None:
    """What a line says about the end of ranks; None for any other line."""
    match = _TASKS_END.search(line)
    if match is None:
        return None
    ranks = frozenset(_ranks(match["tasks"], range(world_size)))
    if not ranks:
        return None
    noun = "rank" if len(ranks) == 1 else "ranks"
    place = f"{noun} {match['tasks']} on {match['hosts']}"
    if match["code"] is not None:
        return RanksEnd(ranks, place, f"exited with code {int(match['code'])}")
    name = _SIGNAL_NAMES.get(match["signal"], match["signal"])
    verb = "killed" if name == signal.SIGKILL.name else "ended"
    if len(ranks) == 1:
        return RanksEnd(ranks, place, f"was {verb} by {name}", name)
    return RanksEnd(ranks, place, f"were {verb} by {name}", name)


def _ranks(tasks: str, known: Collection[int]) -> Iterator[int]:
    """The ranks in srun's list of tasks that the run has.

    Example:
        >>> list(_ranks("0-1,3,9-99999", range(4)))
        [0, 1, 3]
    """
    for part in tasks.split(","):
        first, _, last = part.partition("-")
        if first.isdigit() and (last or first).isdigit():
            yield from (rank for rank in known if int(first) <= rank <= int(last or first))
