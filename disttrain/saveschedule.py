"""When a run is saved next, by the cadence that was asked for and by what saving has cost so far."""

from __future__ import annotations

import math

from disttrain.config import Cadence

# Steps that are not timed, since the first ones of a process take longer, and steps that are timed behind them.
_WARM_UP, _FIRST_LOOK = 5, 5
_FAR = 20  # steps, beyond which it is looked once more how long they take
# What one checkpoint costs is known when the first is written; until then, bytes of it a second. On a CPU the writing
# takes cores from training (390 MB/s, hashed and synced, on the two cores of docs/benchmarks.md); a GPU waits for the
# copy alone, into memory that is made for it (not measured).
_CPU_BYTES_PER_S, _GPU_BYTES_PER_S = 400e6, 2e9


class SaveSchedule:
    """Of one attempt, on rank 0, whose clock decides for all. A decision is (in how many steps, whether to save then).

    Args:
        cadence: Asked for. A share holds for the time since the attempt's first step, from the first checkpoint on.
        on_gpu: Where the run trains.
    """

    def __init__(self, cadence: Cadence, *, on_gpu: bool) -> None:
        self._cadence = cadence
        self._bytes_per_s = _GPU_BYTES_PER_S if on_gpu else _CPU_BYTES_PER_S
        self._began_s = 0.0
        self._warm: tuple[int, float] | None = None  # step and time from which on steps are timed
        self._saves = 0
        self._saved_s = 0.0  # when the last one was made, or the attempt began
        self._cost_s: float | None = None  # of the last checkpoint that was written

    def begin(self, now_s: float) -> tuple[int, bool]:
        """The first decision, before the attempt's first step."""
        self._began_s = self._saved_s = now_s
        return (_WARM_UP, False) if self._cadence.steps is None else (self._cadence.steps, True)

    def note_cost(self, cost_s: float) -> None:
        """Takes down what a checkpoint has cost the run."""
        self._cost_s = cost_s

    def next(self, step: int, now_s: float, *, saved: bool, size_bytes: int) -> tuple[int, bool]:
        """The next decision.

        Args:
            step: Just done.
            now_s: By the clock that `begin` was told the time of.
            saved: Whether a checkpoint was made of it.
            size_bytes: Of a checkpoint.
        """
        if self._cadence.steps is not None:
            return self._cadence.steps, True
        if saved:
            self._saves, self._saved_s = self._saves + 1, now_s
        if self._warm is None:
            self._warm = (step, now_s)
            return _FIRST_LOOK, False
        if self._cadence.seconds is not None:
            due_s = self._saved_s + self._cadence.seconds
        elif self._saves and self._cost_s is None:
            return _FIRST_LOOK, False  # the first one is still being written
        else:
            assert self._cadence.share is not None
            cost_s = size_bytes / self._bytes_per_s if self._cost_s is None else self._cost_s
            # With the next one, all of them may have taken their share of the time until then.
            due_s = self._began_s + (self._saves + 1) * cost_s / self._cadence.share
        step_s = max((now_s - self._warm[1]) / (step - self._warm[0]), 1e-9)
        steps = max(1, math.ceil((due_s - now_s) / step_s))
        # Steps need not go on at the pace of those before: most of a long way on there is another look.
        return (steps * 9 // 10, False) if steps > _FAR else (steps, True)
