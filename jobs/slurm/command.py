"""Runs one command of Slurm: with which environment, for how long, and what is said while it does not answer."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence

# Slurm's commands give up on a controller after 10 to 30 s. What takes longer hangs, for example in a file system.
TIMEOUT_S = 60
# A command that usually takes less is waited for without a word.
_NOTE_AFTER_S = 3

Runner = Callable[[Sequence[str], Mapping[str, str]], "subprocess.CompletedProcess[str]"]


def query_environ(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment of Slurm's commands, without variables that change what they print, or which cluster they ask.

    sbatch gets no SLURM_CLUSTERS either, so the jobs are on the cluster of this host.
    """
    hidden = ("SACCT_", "SQUEUE_", "SCANCEL_", "SINFO_", "SCONTROL_", "SLURM_CLUSTER")
    return {name: value for name, value in environ.items() if not name.startswith(hidden)}


def run_command(command: Sequence[str], environ: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """Runs a command to its end with captured output, for at most TIMEOUT_S; a note on stderr says what is waited for.

    Raises:
        OSError: The command cannot be started.
        subprocess.TimeoutExpired: It was killed after TIMEOUT_S.
    """
    # In a process group of its own: a site's sacct may be a script, whose programs must end with it.
    with subprocess.Popen(
        command, env=environ, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        encoding="utf-8", errors="replace", process_group=0,
    ) as process:  # fmt: skip
        try:
            stdout, stderr = _wait(process, command[0])
        except BaseException as error:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            if isinstance(error, subprocess.TimeoutExpired):
                raise subprocess.TimeoutExpired(command, TIMEOUT_S) from None
            raise
    return subprocess.CompletedProcess(command, process.returncode, stdout, stderr)


def _wait(process: subprocess.Popen[str], name: str) -> tuple[str, str]:
    """The output of a process."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        return process.communicate(timeout=_NOTE_AFTER_S)
    print(f"note: waiting for {name} (at most {TIMEOUT_S} s)", file=sys.stderr, flush=True)
    return process.communicate(timeout=TIMEOUT_S - _NOTE_AFTER_S)
