"""Finds the rank whose own work takes longest."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from disttrain.analysis.measured_steps import MeasuredStep

# A rank is named as slow when its own work takes so many times that of the others, in the median and nearly always.
SLOW_RATIO, SLOW_STEP_RATIO, SLOW_STEP_SHARE = 1.25, 1.1, 0.8


MIN_STEPS = 20  # of fewer chance makes one rank slow now and then, or what it does for all, as writing a checkpoint


@dataclass(frozen=True)
class Straggler:
    """The rank whose own work takes longest."""

    rank: int
    ratio: float  # median over the steps of its own work over the median of the others'
    is_slow: bool


def find_straggler(ranks: Sequence[Sequence[MeasuredStep]]) -> Straggler | None:
    """Who does its own work slowest, and whether so much that it should be named; None for one rank.

    Args:
        ranks: The same measured steps of every rank.
    """
    return find_slowest([[step.own_ms for step in steps] for steps in ranks], MIN_STEPS)


def find_slowest(times: Sequence[Sequence[float]], enough: int) -> Straggler | None:
    """The same of times.

    Args:
        times: Of the same pieces of work of every rank.
        enough: So many pieces at least before a rank is named as slow.
    """
    if len(times) < 2 or not times[0]:
        return None
    best: Straggler | None = None
    for rank, mine in enumerate(times):
        others = [statistics.median(each) for each in zip(*times[:rank], *times[rank + 1 :], strict=True)]
        ratios = [one / max(other, 1e-9) for one, other in zip(mine, others, strict=True)]
        ratio = statistics.median(ratios)
        often = sum(each >= SLOW_STEP_RATIO for each in ratios) / len(ratios)
        if best is None or ratio > best.ratio:
            is_slow = len(ratios) >= enough and ratio >= SLOW_RATIO and often >= SLOW_STEP_SHARE
            best = Straggler(rank, ratio, is_slow)
    return best
