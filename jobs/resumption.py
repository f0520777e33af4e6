"""The programs of `sweep` that rank 0 starts when an attempt ends: the next job of a chain, and the notification."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from disttrain.records.lifecycle.resumption import run_program

_TIMEOUT_S = 45


def chain_command(run_dir: str) -> tuple[str, ...]:
    """The command that submits the next job of a chain, without its last argument, the id of this job.

    It is a program of its own: `sweep` is above this module, and its submission must not see the state of the rank.
    """
    return (sys.executable, "-P", "-m", "jobs.submission.chain", run_dir)


def notify_end(run_dir: Path, environ: Mapping[str, str]) -> None:
    """Lets a program of `sweep` notify the user if this run was the last one to end, or the first one to fail."""
    command = [sys.executable, "-P", "-m", "jobs.submission.notification", str(run_dir)]
    try:
        done = run_program(command, environ, _TIMEOUT_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        print(f"note: no notification: {error}", flush=True)
        return
    print(done.stderr, end="", flush=True)  # its notes
