"""Ends a command with all that it started, so that no rank stays on a GPU."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import psutil

_GONE_S = 10.0  # a process in a call of a broken driver may stay


def end_all(process: subprocess.Popen[Any]) -> None:
    """Kills a process and its descendants, and waits until they are gone.

    torchrun starts each rank in a session of its own, where `os.killpg` does not find it.
    """
    import psutil  # only here: without it no run begins, but the page is written

    killed = []
    if process.poll() is None:
        with contextlib.suppress(psutil.NoSuchProcess):
            root = psutil.Process(process.pid)
            root.suspend()  # it starts nothing more
            killed = [root, *root.children(recursive=True)]
    for one in killed:
        with contextlib.suppress(psutil.NoSuchProcess):
            one.kill()
    process.wait()
    until_s = time.monotonic() + _GONE_S
    while any(map(_is_alive, killed)) and time.monotonic() < until_s:
        time.sleep(0.01)


def _is_alive(process: psutil.Process) -> bool:
    import psutil

    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def exit_by_sigterm() -> None:
    """Makes SIGTERM an exit of this process: its `finally` blocks run, and end what it has started."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
