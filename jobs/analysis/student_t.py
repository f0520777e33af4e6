"""Student's t distribution: the 95 % interval of a mean of few values."""

from __future__ import annotations

import functools
import math
import statistics
from collections.abc import Sequence

_CONFIDENCE = 0.95
_FEWEST = 3  # two values give an interval of 9 standard deviations to each side: it would say nothing
_HALVINGS = 60  # of an angle below 2: the rest is below the resolution of a float


def interval(values: Sequence[float]) -> tuple[float, float] | None:
    """The 95 % interval of the mean of some values, by Student's t.

    Args:
        values: Independent values, for example a figure of runs with different seeds.

    Returns:
        The lower and the upper end; None for fewer than three values.

    Example:
        >>> low, high = interval([1.0, 2.0, 3.0])
        >>> round(low, 3), round(high, 3)
        (-0.484, 4.484)
    """
    if len(values) < _FEWEST:
        return None
    mean = statistics.fmean(values)
    half = t_quantile(len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return mean - half, mean + half


@functools.cache
def t_quantile(degrees: int) -> float:
    """The t that bounds 95 % of Student's distribution, to both sides.

    Args:
        degrees: The degrees of freedom, at least 1.

    Returns:
        The quantile, to at least nine digits.

    Example:
        >>> round(t_quantile(1), 4), round(t_quantile(2), 4), round(t_quantile(30), 4)
        (12.7062, 4.3027, 2.0423)
    """
    if degrees < 1:
        raise ValueError(f"{degrees} degrees of freedom")
    low, high = 0.0, math.pi / 2
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if _probability_within(middle, degrees) < _CONFIDENCE:
            low = middle
        else:
            high = middle
    return math.sqrt(degrees) * math.tan(low)


def _probability_within(angle: float, degrees: int) -> float:
    """The probability of a t between -x and x, for ``x = sqrt(degrees) tan(angle)``.

    For whole degrees of freedom it is a finite sum: Abramowitz and Stegun, Handbook of Mathematical Functions,
    26.7.3 and 26.7.4.
    """
    square = math.cos(angle) ** 2
    odd = degrees % 2
    term = total = 0.0
    if degrees > 1:
        term = total = math.cos(angle) if odd else 1.0
    for power in range(2 + odd, degrees - 1, 2):
        term *= square * (power - 1) / power
        total += term
    within = math.sin(angle) * total
    if odd:
        return 2 / math.pi * (angle + within)
    return within
