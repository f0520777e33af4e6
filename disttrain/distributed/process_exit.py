"""How the process of a rank ends, even while its threads or other ranks are still busy."""

from __future__ import annotations

import atexit
import faulthandler
import os
import sys
from typing import Any

_EXIT_S = 15.0  # the most time that a failed rank takes to end
_STDERR = 2  # the descriptor: sys.stderr may be replaced by an object without one


def leave_without_teardown(status: int = 0) -> None:
    """Lets a finished rank exit without the interpreter's teardown, unless an exception follows.

    During teardown, a thread of torch may outlive its owner ("terminate called without an active exception"). This
    happened occasionally with four gloo ranks. The rank then counts as failed, and the launcher ends the other ranks
    before they have finished.

    Args:
        status: The exit status.
    """
    failed, original_hook = False, sys.excepthook

    def note_failure(*error: Any) -> None:
        nonlocal failed
        failed = True
        original_hook(*error)

    def exit_now() -> None:
        if not failed:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)

    sys.excepthook = note_failure
    atexit.register(exit_now)


def exit_soon(limit_s: float | None = None) -> None:
    """Ends this process with status 1 within a time limit, even if its teardown waits for ranks that cannot answer.

    Args:
        limit_s: The time limit; None for 15 s.

    The launcher ends the other ranks after this process has ended. NCCL's own teardown may wait for a collective that
    never completes, until the collective's time limit, and it holds the interpreter's lock. A thread of Python would
    then never run again. faulthandler's thread is written in C and needs no lock; it also prints where each thread is.
    """
    faulthandler.dump_traceback_later(limit_s or _EXIT_S, exit=True, file=_STDERR)
