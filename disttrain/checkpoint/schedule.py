"""When to save next, from the configured cadence and the measured cost of a checkpoint."""

from __future__ import annotations

import math

from disttrain.config.cadence import Cadence

# The first steps of a process take longer, and are not timed. The step time is a mean over at least `_TIMED` steps.
_WARM_UP, _TIMED = 5, 5
# Until the first checkpoint is written, its cost is estimated from its size and this speed. On a CPU the writing takes
# cores from training (390 MB/s, hashed and synced, on the two cores of docs/benchmarks.md). A GPU only waits for the
# copy into newly allocated pinned memory (1.0 to 1.6 GB/s, docs/gpu.md).
_CPU_BYTES_PER_S, _GPU_BYTES_PER_S = 400e6, 1e9


class SaveSchedule:
    """The schedule of saves of one attempt, on rank 0, whose clock decides for all ranks.

    A decision is a pair: the number of steps until the next decision is due, and whether to save at that step.

    Args:
        cadence: How often to save. With a share, the first and all later checkpoints together take at most this share
            of the time since the first step of the attempt.
        on_gpu: Whether the run trains on a GPU.
    """

    def __init__(self, cadence: Cadence, *, on_gpu: bool) -> None:
        self._cadence = cadence
        self._bytes_per_s = _GPU_BYTES_PER_S if on_gpu else _CPU_BYTES_PER_S
        self._size_bytes = 0
        self._warm_step = 0
        self._began_s = 0.0
        self._mark = (0, 0.0)  # the step and the time from which steps are timed
        self._saves = 0
        self._saved_s = 0.0  # when the last checkpoint was made, or the attempt began
        self._cost_s: float | None = None  # the cost of the last checkpoint that was written

    def begin(self, step: int, now_s: float, size_bytes: int) -> tuple[int, bool]:
        """The first decision, at the beginning of the attempt.

        Args:
            step: The last step before the attempt; 0 at the beginning of the run.
            now_s: The time by a monotonic clock.
            size_bytes: The approximate size of a checkpoint.
        """
        self._size_bytes = size_bytes
        self._warm_step = step + _WARM_UP
        self._began_s = self._saved_s = now_s
        if self._cadence.steps is None:
            return 1, False
        return self._cadence.steps, True

    def note_cost(self, cost_s: float) -> None:
        """Notes the training time that a checkpoint has cost."""
        self._cost_s = cost_s

    def next(self, step: int, now_s: float, *, saved: bool) -> tuple[int, bool]:
        """The next decision.

        Args:
            step: The step just done.
            now_s: The time by the clock that `begin` was called with.
            saved: Whether a checkpoint was made after this step.
        """
        if self._cadence.steps is not None:
            return self._cadence.steps, True
        if saved:
            self._saves, self._saved_s, self._mark = self._saves + 1, now_s, (step, now_s)
        if self._saves and self._cost_s is None and self._cadence.share is not None:
            return _TIMED, False  # the first checkpoint is still being written
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
        if steps == 1:
            return 1, True
        # The step time may change, so decide again shortly before the save. That costs one message to all ranks.
        return max(1, steps * 9 // 10), False

    def _due_s(self) -> float:
        """The time at which to save next."""
        if self._cadence.seconds is not None:
            return self._saved_s + self._cadence.seconds
        assert self._cadence.share is not None
        cost_s = self._cost_s
        if cost_s is None:
            cost_s = self._size_bytes / self._bytes_per_s
        # The first bound keeps all checkpoints, the next one included, within their share of the time. The second keeps
        # the interval: time that was not used, for example after a long evaluation, does not allow two saves in a row.
        return max(
            self._began_s + (self._saves + 1) * cost_s / self._cadence.share,
            self._saved_s + cost_s / self._cadence.share,
        )
