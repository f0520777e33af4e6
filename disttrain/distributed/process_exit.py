"""How the process of a rank ends, whatever its threads and its peers are still about."""

from __future__ import annotations

import atexit
import os
import sys
import threading
from typing import Any

_EXIT_S = 15.0  # that a rank which has failed takes to end, at most


def leave_without_teardown() -> None:
    """Lets a rank that has done its work end without the interpreter's tear-down, unless something fails behind it.

    There a thread of torch's may outlive what it belongs to ("terminate called without an active exception"): seen now
    and then with four gloo ranks. The rank then counts as failed, and the launcher ends the others before their end.
    """
    failed, hook = False, sys.excepthook

    def remember(*error: Any) -> None:
        nonlocal failed
        failed = True
        hook(*error)

    def leave() -> None:
        if not failed:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(0)

    sys.excepthook = remember
    atexit.register(leave)


def exit_soon() -> None:
    """Ends this process even where its end would wait for ranks that cannot answer.

    The launcher ends the other ranks once this process is gone; NCCL's own tear-down may wait for a collective that
    will never be done until its time limit.
    """
    timer = threading.Timer(_EXIT_S, os._exit, (1,))
    timer.daemon = True
    timer.start()
