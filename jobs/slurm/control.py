"""Commands that change jobs: the release of held ones, and their end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from disttrain.errors import UserError
from jobs.slurm.sacct import Runner, run_command
from jobs.slurm.sacct_table import AccountingUnavailable
from jobs.slurm.squeue import ask_controller


def release(job_ids: Sequence[str], *, environ: Mapping[str, str], run: Runner = run_command) -> None:
    """Releases held jobs; of an array its id releases all tasks.

    Raises:
        UserError: The controller did not release them.
    """
    _control(["scontrol", "release", ",".join(job_ids)], environ, run)


def cancel(job_ids: Sequence[str], *, environ: Mapping[str, str], run: Runner = run_command) -> None:
    """Ends jobs, waiting or running; of an array its id ends all tasks.

    Raises:
        UserError: The controller did not end them.
    """
    _control(["scancel", *job_ids], environ, run)


def _control(command: Sequence[str], environ: Mapping[str, str], run: Runner) -> None:
    try:
        ask_controller(command, environ, run)
    except AccountingUnavailable as error:
        raise UserError(f"{' '.join(command)}: {error}") from None
