"""Lets all ranks stop after the same step when one of them has received a stop signal."""

from __future__ import annotations

import time
from typing import Literal

import torch

from disttrain.distributed.group import Group
from disttrain.environment.stop_signals import StopSignals

# The time between two checks. Slurm warns long before the end (warning_s), and one check takes about a millisecond.
CHECK_EVERY_S = 5.0
_FACTOR = 1 << 20  # above the number of ranks: both counts fit into one number

StopCause = Literal["warning", "termination"]


class StopAgreement:
    """Checks every few seconds, after the same step on every rank, whether any rank has received a stop signal.

    The ranks cannot act on a signal alone: it reaches them at different steps, and a rank that stops leaves the others
    in an all-reduce. Rank 0's clock decides how many steps pass until the next check.

    Args:
        signals: The signals of this rank.
        group: The ranks.
        step: The last step before this attempt.

    Attributes:
        signals: The signals of this rank.
    """

    def __init__(self, signals: StopSignals, group: Group, step: int) -> None:
        self.signals = signals
        self._group = group
        self._checked_step, self._due = step, step + 1
        self._checked_s = time.monotonic()

    def is_due(self, step: int) -> bool:
        """Whether to call `cause` after this step; the same on every rank. Without other ranks only after a signal."""
        if self._group.backend is None:
            return self.signals.warned or self.signals.terminated
        return step >= self._due

    def cause(self, step: int) -> StopCause | None:
        """Why all ranks stop after this step; None if they continue. The same on every rank.

        Args:
            step: The step just done, at which a check is due.
        """
        if self._group.backend is None:
            return _cause(self.signals.warned, self.signals.terminated)
        # One all-reduce: how many ranks were warned or are to end, and rank 0's decision. On a GPU the host waits for
        # it, which drains the queue of kernels once in CHECK_EVERY_S.
        values = (self.signals.warned + _FACTOR * self.signals.terminated, self._next_steps(step))
        received, steps = self._group.sum(torch.tensor(values, device=self._group.device)).tolist()
        self._checked_step, self._due, self._checked_s = step, step + steps, time.monotonic()
        return _cause(received % _FACTOR > 0, received >= _FACTOR)

    def _next_steps(self, step: int) -> int:
        """Rank 0: the number of steps until the next check. Other ranks: 0."""
        if not self._group.is_main:
            return 0
        steps = step - self._checked_step
        step_s = max((time.monotonic() - self._checked_s) / steps, 1e-9)
        # At most twice as many as the last time: the first steps take longer, for example to compile.
        return max(1, min(int(CHECK_EVERY_S / step_s), 2 * steps))


def _cause(warned: bool, terminated: bool) -> StopCause | None:
    if warned:
        return "warning"
    return "termination" if terminated else None
