"""Commands that change jobs: the release of held ones, and their end."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterable, Mapping, Sequence

from disttrain.errors import UserError
from jobs.slurm.command import Runner, run_command
from jobs.slurm.sacct_table import AccountingUnavailable
from jobs.slurm.squeue import ask_controller

# What scancel says of a job that has ended, alone.
_ENDED = re.compile(
    r"^[^:]*: scancel failed:(?: scancel: error: (?:Kill job error on job id \S+: )?"
    r"(?:Invalid job id(?: specified| \S+)?|Job/step already completing or completed|Job has already finished))+$"
)

_STEP = 0  # the only srun of the script


def release(job_ids: Sequence[str], *, environ: Mapping[str, str], run: Runner = run_command) -> None:
    """Releases held jobs; of an array its id releases all tasks.

    Raises:
        UserError: The controller did not release them.
    """
    _control(["scontrol", "release", ",".join(job_ids)], environ, run)


def cancel(
    job_ids: Sequence[str], *, environ: Mapping[str, str], run: Runner = run_command, only_pending: bool = False
) -> None:
    """Ends jobs, waiting or running; of an array its id ends all tasks.

    Args:
        job_ids: The jobs; `compact_ids` shortens a long list.
        environ: The environment of scancel.
        run: A function that runs a command in an environment.
        only_pending: Whether those that have started continue.

    Raises:
        UserError: The controller did not end them.
    """
    options = ["--state=PENDING"] if only_pending else []
    try:
        _control(["scancel", *options, *job_ids], environ, run)
    except UserError as error:
        # A job that has ended in the meantime, or a long time ago, needs no end.
        if not _ENDED.search(error.message):
            raise


def cancel_named(name: str, *, user_id: int, environ: Mapping[str, str], run: Runner = run_command) -> None:
    """Ends all jobs of a user with a name, waiting or running.

    Raises:
        UserError: The controller did not end them.
    """
    _control(["scancel", f"--name={name}", f"--user={user_id}"], environ, run)


def signal_ranks(job_id: str, number: signal.Signals, *, environ: Mapping[str, str], run: Runner = run_command) -> None:
    """Sends a signal to the ranks of a job: to the step that its script starts, not to the script.

    Raises:
        UserError: The controller did not send it.
    """
    _control(["scancel", f"--signal={number.name.removeprefix('SIG')}", f"{job_id}.{_STEP}"], environ, run)


def compact_ids(job_ids: Iterable[str]) -> list[str]:
    """The same jobs in fewer words: the tasks of an array as ranges. A command line has a limited length.

    Example:
        >>> compact_ids(["7_0", "7_1", "7_2", "7_9", "8"])
        ['7_[0-2,9]', '8']
    """
    tasks: dict[str, list[int]] = {}
    plain: dict[str, None] = {}
    for job_id in job_ids:
        array, _, task = job_id.partition("_")
        if task.isdecimal():
            tasks.setdefault(array, []).append(int(task))
        else:
            plain[job_id] = None
    return [f"{array}_[{_ranges(indices)}]" for array, indices in tasks.items()] + list(plain)


def _ranges(indices: Iterable[int]) -> str:
    ranges: list[list[int]] = []
    for index in sorted(set(indices)):
        if ranges and ranges[-1][1] == index - 1:
            ranges[-1][1] = index
        else:
            ranges.append([index, index])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in ranges)


def _control(command: Sequence[str], environ: Mapping[str, str], run: Runner) -> None:
    try:
        ask_controller(command, environ, run)
    except AccountingUnavailable as error:
        raise UserError(f"{' '.join(command)}: {error}") from None
