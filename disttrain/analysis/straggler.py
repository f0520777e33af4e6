"""Finds the rank whose own work takes longest."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from disttrain.analysis.measured_steps import Measured

# A rank is named as slow when its own work takes so many times that of the others, in the median and nearly always.
SLOW, SLOWER, NEARLY_ALWAYS = 1.25, 1.1, 0.8


ENOUGH_STEPS = 20  # of fewer chance makes one rank slow now and then, or what it does for all, as writing a checkpoint


@dataclass(frozen=True)
class Slowest:
    """The rank whose own work takes longest."""

    rank: int
    ratio: float  # median over the steps of its own work over the median of the others'
    is_slow: bool


def slowest(ranks: Sequence[Sequence[Measured]]) -> Slowest | None:
    """Who does its own work slowest, and whether so much that it should be named; None for one rank.

    Args:
        ranks: The same measured steps of every rank.
    """
    return slowest_of([[step.own_ms for step in steps] for steps in ranks], ENOUGH_STEPS)


def slowest_of(times: Sequence[Sequence[float]], enough: int) -> Slowest | None:
    """The same of times.

    Args:
        times: Of the same pieces of work of every rank.
        enough: So many pieces at least before a rank is named as slow.
    """
    if len(times) < 2 or not times[0]:
        return None
    best: Slowest | None = None
    for rank, mine in enumerate(times):
        others = [statistics.median(each) for each in zip(*times[:rank], *times[rank + 1 :], strict=True)]
        ratios = [one / max(other, 1e-9) for one, other in zip(mine, others, strict=True)]
        ratio = statistics.median(ratios)
        often = sum(each >= SLOWER for each in ratios) / len(ratios)
        if best is None or ratio > best.ratio:
            is_slow = len(ratios) >= enough and ratio >= SLOW and often >= NEARLY_ALWAYS
            best = Slowest(rank, ratio, is_slow)
    return best
