"""Finds the rank whose own work takes longest."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from disttrain.analysis.measured_steps import MeasuredStep

# A rank is reported as slow if its own work takes SLOW_RATIO times as long as that of the others in the median, and
# SLOW_STEP_RATIO times as long in at least SLOW_STEP_SHARE of the steps.
SLOW_RATIO, SLOW_STEP_RATIO, SLOW_STEP_SHARE = 1.25, 1.1, 0.8
# With fewer steps, one rank may appear slow by chance, or because it does work for all, such as writing a checkpoint.
MIN_STEPS = 20


@dataclass(frozen=True)
class Straggler:
    """The rank whose own work takes longest."""

    rank: int
    ratio: float  # median over the steps of: its own work / median of the others'
    is_slow: bool


def find_straggler(ranks: Sequence[Sequence[MeasuredStep]]) -> Straggler | None:
    """The rank with the slowest own work, and whether it should be reported; None with one rank or no steps.

    Args:
        ranks: The measured steps of each rank: the same steps for all.
    """
    return find_slowest([[step.own_ms for step in steps] for steps in ranks], MIN_STEPS)


def find_slowest(times: Sequence[Sequence[float]], min_samples: int) -> Straggler | None:
    """The rank with the longest times, and whether it should be reported; None with one rank or no times.

    Args:
        times: The times of each rank for the same pieces of work.
        min_samples: The number of times per rank below which no rank is reported.
    """
    if len(times) < 2 or not times[0]:
        return None
    slowest: Straggler | None = None
    for rank, own in enumerate(times):
        others = [statistics.median(column) for column in zip(*times[:rank], *times[rank + 1 :], strict=True)]
        ratios = [own_time / max(other, 1e-9) for own_time, other in zip(own, others, strict=True)]
        ratio = statistics.median(ratios)
        slow_share = sum(step_ratio >= SLOW_STEP_RATIO for step_ratio in ratios) / len(ratios)
        if slowest is None or ratio > slowest.ratio:
            is_slow = len(ratios) >= min_samples and ratio >= SLOW_RATIO and slow_share >= SLOW_STEP_SHARE
            slowest = Straggler(rank, ratio, is_slow)
    return slowest
