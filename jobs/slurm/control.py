"""Commands that change jobs: the release of held ones, and their end."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence

from disttrain.errors import UserError
from jobs.slurm.sacct import Runner, query_environ, run_command


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
        done = run(command, query_environ(environ))
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UserError(f"{command[0]} cannot be run: {error}") from None
    if done.returncode != 0:
        raise UserError(f"{' '.join(command)} failed: {' '.join(done.stderr.split())}")
