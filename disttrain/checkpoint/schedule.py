"""When a run is saved next, by the cadence that was asked for and by what saving has cost so far."""

from __future__ import annotations

import math

from disttrain.config.cadence import Cadence

# The first steps of a process take longer, and are not timed; of fewer than so many behind them nothing is concluded.
_WARM_UP, _TIMED = 5, 5
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
        self._size_bytes = 0
        self._warm_step = 0
        self._began_s = 0.0
        self._mark = (0, 0.0)  # step and time from which on steps are timed
        self._saves = 0
        self._saved_s = 0.0  # when the last one was made, or the attempt began
        self._cost_s: float | None = None  # of the last checkpoint that was written

    def begin(self, step: int, now_s: float, size_bytes: int) -> tuple[int, bool]:
        """The first decision, where the attempt begins.

        Args:
            step: Behind which.
            now_s: By any clock that runs evenly.
            size_bytes: Of a checkpoint, about.
        """
        self._size_bytes = size_bytes
        self._warm_step = step + _WARM_UP
        self._began_s = self._saved_s = now_s
        return (1, False) if self._cadence.steps is None else (self._cadence.steps, True)

    def note_cost(self, cost_s: float) -> None:
        """Takes down what a checkpoint has cost the run."""
        self._cost_s = cost_s

    def next(self, step: int, now_s: float, *, saved: bool) -> tuple[int, bool]:
        """The next decision.

        Args:
            step: Just done.
            now_s: By the clock that `begin` was told the time of.
            saved: Whether a checkpoint was made of it.
        """
        if self._cadence.steps is not None:
            return self._cadence.steps, True
        if saved:
            self._saves, self._saved_s, self._mark = self._saves + 1, now_s, (step, now_s)
        if self._saves and self._cost_s is None and self._cadence.share is not None:
            return _TIMED, False  # the first one is still being written
        due_s = self._due_s()
        if due_s <= now_s:
            return 1, True
        if step <= self._warm_step:
            self._mark = (step, now_s)
        timed = step - self._mark[0]
        if timed < _TIMED:
            return 1, False
        step_s = max((now_s - self._mark[1]) / timed, 1e-9)
        self._mark = (step, now_s)
        steps = max(1, math.ceil((due_s - now_s) / step_s))
        # Steps need not keep their pace: what is near is looked at again, which takes a message to all ranks.
        return (max(1, steps * 9 // 10), False) if steps > 1 else (1, True)

    def _due_s(self) -> float:
        """When to save next."""
        if self._cadence.seconds is not None:
            return self._saved_s + self._cadence.seconds
        assert self._cadence.share is not None
        cost_s = self._size_bytes / self._bytes_per_s if self._cost_s is None else self._cost_s
        # With the next one all of them may have taken their share of the time; what was not spent, behind a long
        # evaluation say, is no reason to save twice in a row.
        return max(
            self._began_s + (self._saves + 1) * cost_s / self._cadence.share,
            self._saved_s + cost_s / self._cadence.share,
        )
