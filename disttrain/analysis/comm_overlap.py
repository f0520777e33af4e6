"""The gradient exchange of one step: its exposed and overlapped time, and the span of each all-reduce."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Exchange:
    """The buckets of one step on one rank, in the order in which they were ready.

    Attributes:
        bucket_bytes: The bytes that each bucket sends, after compression.
        ready_ms: The time at which each bucket's gradients were computed, from the start of the step.
        done_ms: The time at which each bucket's sum over the ranks was complete, from the start of the step.
    """

    bucket_bytes: tuple[int, ...]
    ready_ms: tuple[float, ...]
    done_ms: tuple[float, ...]

    @property
    def computed_ms(self) -> float:
        """The time at which the backward computation ended: its last bucket was ready."""
        return max(self.ready_ms)

    def exposed_comm_ms(self, backward_end_ms: float) -> float:
        """The time from the last gradient to the end of the backward pass, which ends with the exchange.

        Args:
            backward_end_ms: The end of the backward pass, from the start of the step.
        """
        return max(0.0, backward_end_ms - self.computed_ms)

    def overlapped_comm_ms(self) -> float:
        """The time with at least one bucket in its exchange while gradients were still computed."""
        spans = zip(self.ready_ms, self.done_ms, strict=True)
        return covered_ms((ready, min(done, self.computed_ms)) for ready, done in spans)


def all_reduce_spans(
    ranks: Sequence[Exchange], starts_ms: Sequence[float], concurrency: int = 1
) -> tuple[tuple[float, float], ...]:
    """The (begin, end) of each bucket's all-reduce in one step, without the wait for a slow rank.

    An all-reduce can begin when the last rank is ready and the backend has completed an earlier one. It ends when it is
    complete on every rank.

    Args:
        ranks: The same step on every rank.
        starts_ms: The start of the step on each rank, on a common clock.
        concurrency: The number of all-reduces that the backend processes at the same time.
    """
    ends: list[float] = []
    spans = []
    for bucket in range(len(ranks[0].bucket_bytes)):
        ready = max(start + rank.ready_ms[bucket] for rank, start in zip(ranks, starts_ms, strict=True))
        done = max(start + rank.done_ms[bucket] for rank, start in zip(ranks, starts_ms, strict=True))
        begin = ready
        if len(ends) >= concurrency:
            begin = max(ready, sorted(ends)[-concurrency])
        spans.append((min(done, begin), done))
        ends.append(done)
    return tuple(spans)


def covered_ms(spans: Iterable[tuple[float, float]]) -> float:
    """The time covered by (begin, end) spans; where spans overlap, the time counts once.

    Example:
        >>> covered_ms([(0.0, 2.0), (1.0, 3.0), (5.0, 6.0)])
        4.0
    """
    total, reached = 0.0, -math.inf
    for begin, end in sorted(spans):
        total += max(0.0, end - max(begin, reached))
        reached = max(reached, end)
    return total
