"""The exchange of gradients as arithmetic: what of it hides behind the backward pass, and how fast the link is."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Exchange:
    """The buckets of one step on one rank, in the order in which they were ready.

    Attributes:
        bucket_bytes: That each bucket sends, after compression.
        ready_ms: When its gradients were there, from the start of the step.
        done_ms: When its sum over the ranks was.
    """

    bucket_bytes: tuple[int, ...]
    ready_ms: tuple[float, ...]
    done_ms: tuple[float, ...]

    @property
    def computed_ms(self) -> float:
        """When the backward pass had nothing more to compute: its last bucket was ready."""
        return max(self.ready_ms)

    def exposed_comm_ms(self, backward_end_ms: float) -> float:
        """What the step waits for: from its last gradient to the end of the backward pass, which the exchange ends.

        Args:
            backward_end_ms: From the start of the step.
        """
        return max(0.0, backward_end_ms - self.computed_ms)

    def overlapped_comm_ms(self) -> float:
        """How long buckets were under way while gradients were still computed; where two are, that time counts once."""
        spans = zip(self.ready_ms, self.done_ms, strict=True)
        return covered_ms((ready, min(done, self.computed_ms)) for ready, done in spans)


def all_reduce_spans(
    ranks: Sequence[Exchange], starts_ms: Sequence[float], at_once: int = 1
) -> tuple[tuple[float, float], ...]:
    """When the all-reduce of each bucket of one step began and ended, the wait for a slow rank left out.

    An all-reduce can begin when the last rank is ready and the backend has done with an earlier one, and has ended when
    it has on every rank.

    Args:
        ranks: The same step on every rank.
        starts_ms: When the step began on each of them, by one clock.
        at_once: All-reduces that the backend works on at the same time.
    """
    ends: list[float] = []
    found = []
    for bucket in range(len(ranks[0].bucket_bytes)):
        ready = max(start + rank.ready_ms[bucket] for rank, start in zip(ranks, starts_ms, strict=True))
        done = max(start + rank.done_ms[bucket] for rank, start in zip(ranks, starts_ms, strict=True))
        free = sorted(ends)[-at_once] if len(ends) >= at_once else ready
        found.append((min(done, max(ready, free)), done))
        ends.append(done)
    return tuple(found)


def covered_ms(spans: Iterable[tuple[float, float]]) -> float:
    """The time that is covered by spans, (begin, end); where they overlap it counts once.

    Example:
        >>> union_ms([(0.0, 2.0), (1.0, 3.0), (5.0, 6.0)])
        4.0
    """
    total, reached = 0.0, -math.inf
    for begin, end in sorted(spans):
        total += max(0.0, end - max(begin, reached))
        reached = max(reached, end)
    return total
