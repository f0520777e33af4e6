"""Statistics of repeated runs: ratios with their intervals, the best peer, and whether all learned the same."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tests.benchmarks.work import Result

# 0.975 quantiles of Student's t by degrees of freedom; after these, the normal distribution is close enough.
_T975 = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
)

Runs = Mapping[str, Sequence[Result]]  # results of each contender, by repetition


@dataclass(frozen=True)
class Ratio:
    """A ratio of speeds over paired repetitions."""

    median: float
    low: float | None  # lower end of the 95 % interval; None for one repetition
    high: float | None
    runs: int

    def __str__(self) -> str:
        interval = "" if self.low is None else f" [{self.low:.2f}-{self.high:.2f}]"
        return f"{self.median:.2f}{interval}"


def t_quantile(freedom: int) -> float:
    """The 0.975 quantile of Student's t.

    Example:
        >>> t_quantile(2)
        4.303
    """
    return _T975[freedom - 1] if freedom <= len(_T975) else 1.96 + 2.4 / freedom


def paired_ratio(fast: Sequence[float], reference: Sequence[float]) -> Ratio:
    """The ratio of two series that were measured alternately, repetition by repetition.

    The interval is Student's t for the mean of the log ratios. With three to five repetitions, a bootstrap cannot leave
    the measured range, and covers about three quarters instead of 95 %. The interval of t is wide but correct.

    Args:
        fast: The examples per second of the contender in question.
        reference: The examples per second of the other contender, in the same repetitions.

    Example:
        >>> str(paired_ratio([2.0, 2.2, 2.1], [1.0, 1.0, 1.0]))
        '2.10 [1.87-2.36]'
    """
    logs = [math.log(speed / other) for speed, other in zip(fast, reference, strict=True)]
    median = math.exp(statistics.median(logs))
    if len(logs) < 2:
        return Ratio(median, None, None, len(logs))
    mean = statistics.fmean(logs)
    half = t_quantile(len(logs) - 1) * statistics.stdev(logs) / math.sqrt(len(logs))
    return Ratio(median, math.exp(mean - half), math.exp(mean + half), len(logs))


def speeds(results: Sequence[Result], *, first_step: bool = True) -> list[float]:
    """Examples per second of each repetition, over the complete loop or without its first step."""
    if first_step:
        return [result.samples_per_s for result in results]
    return [
        result.examples * (result.steps - 1) / result.steps / (result.train_s - result.first_step_s)
        for result in results
    ]


def best_peer(runs: Runs, peers: Sequence[str]) -> str | None:
    """The peer with the highest geometric mean of its speeds over all repetitions; None without peers.

    The choice is made once for the cell: the maximum of several noisy figures in each repetition would be too fast.
    """
    present = [peer for peer in peers if runs.get(peer)]
    return max(present, key=lambda peer: statistics.geometric_mean(speeds(runs[peer])), default=None)


def that_learn(runs: Runs) -> Runs:
    """The runs of the contenders that learn; the limit does not."""
    return {name: results for name, results in runs.items() if all(run.eval_loss is not None for run in results)}


def learn_less(
    runs: Runs, peers: Sequence[str], standards: Sequence[str], loss_tolerance: float, accuracy_tolerance: float
) -> tuple[str, ...]:
    """The peers that learn less than one of the standards in the same steps, by more than the tolerances.

    They are faster because they learn less: the table shows and marks their speed. Ours is never in this list.
    """

    def mean(name: str, figure: str) -> float:
        return statistics.fmean(getattr(result, figure) for result in runs[name])

    def is_less(peer: str, standard: str) -> bool:
        by_loss = mean(peer, "eval_loss") - mean(standard, "eval_loss") > loss_tolerance
        return by_loss or mean(standard, "eval_accuracy") - mean(peer, "eval_accuracy") > accuracy_tolerance

    present = [standard for standard in standards if standard in runs]
    return tuple(
        peer
        for peer in peers
        if peer in runs and peer not in standards and any(is_less(peer, standard) for standard in present)
    )


def disagreements(runs: Runs, loss_tolerance: float, accuracy_tolerance: float) -> list[str]:
    """The differences that show that contenders did not learn the same; empty if they did."""
    differences: list[str] = []
    if not runs:
        return differences
    for figure, tolerance in (("eval_loss", loss_tolerance), ("eval_accuracy", accuracy_tolerance)):
        means = {
            name: statistics.fmean(getattr(result, figure) for result in results) for name, results in runs.items()
        }
        low, high = min(means, key=means.__getitem__), max(means, key=means.__getitem__)
        # This form of the comparison does not accept NaN.
        if not means[high] - means[low] <= tolerance or not all(map(math.isfinite, means.values())):
            differences.append(
                f"{figure} {means[low]:.4f} of {low} and {means[high]:.4f} of {high} differ by more than {tolerance}"
            )
    return differences
