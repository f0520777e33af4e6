"""The signals by which Slurm announces the end of a job: a rank notes them, and the training loop stops."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

WARNING, TERMINATION = signal.SIGUSR2, signal.SIGTERM
# Slurm sends SIGKILL KillWait seconds (30 by default) after SIGTERM. A rank that cannot stop in less time ends itself.
_TERMINATION_LIMIT_S = 25


class StopSignals:
    """Notes the warning of a time limit or a preemption, and the request to end.

    The warning is noted from now on. The request to end is noted only within `catching_termination`; elsewhere it ends
    the process at once, because there is nothing to save.

    Attributes:
        warned: Whether the warning has come.
        terminated: Whether the request to end has come.
    """

    def __init__(self) -> None:
        self.warned = False
        self.terminated = False
        self._process = os.getpid()
        signal.signal(WARNING, self._note_warning)

    @contextmanager
    def catching_termination(self) -> Iterator[None]:
        """Within the block, a request to end is noted, and ends the process only after some time."""
        signal.signal(TERMINATION, self._note_termination)
        try:
            yield
        finally:
            signal.signal(TERMINATION, signal.SIG_DFL)

    def give_time(self) -> None:
        """No rank is stuck: this process may take until Slurm kills it."""
        signal.alarm(0)

    def _note_warning(self, _number: int, _frame: FrameType | None) -> None:
        self.warned = True

    def _note_termination(self, _number: int, _frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            return  # a process that this one has forked
        self.terminated = True
        # The kernel ends the process, even if it waits for another rank in C.
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(_TERMINATION_LIMIT_S)
