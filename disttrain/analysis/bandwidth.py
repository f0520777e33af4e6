"""All-reduce time and bandwidth of each gradient bucket and of a step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from disttrain.analysis.comm_overlap import all_reduce_spans, covered_ms
from disttrain.analysis.measured_steps import MeasuredStep, Percentiles, percentiles


@dataclass(frozen=True)
class BucketSummary:
    """One gradient bucket over the measured steps."""

    size_bytes: int
    all_reduce_ms: Percentiles  # from the last rank ready and an earlier bucket done, to done on every rank
    algorithm_gb_per_s: float  # of the median
    bus_gb_per_s: float  # of the median


@dataclass(frozen=True)
class ExchangeSummary:
    """All buckets over the measured steps."""

    buckets: tuple[BucketSummary, ...]
    all_reduce_ms: Percentiles  # of a whole step: while any bucket was under way
    bus_gb_per_s: float  # of the median


def summarise_exchanges(ranks: Sequence[Sequence[MeasuredStep]], at_once: int) -> ExchangeSummary | None:
    """The exchange over the link, bucket by bucket and as a whole; None where it was not watched or there is none.

    Args:
        ranks: The same measured steps of every rank, of the same buckets.
        at_once: All-reduces that the backend works on at the same time.
    """
    world_size, spans = len(ranks), []
    sizes: tuple[int, ...] = ()
    for together in zip(*ranks, strict=True):
        found = [step.exchange for step in together if step.exchange is not None]
        if len(found) < world_size:
            return None
        sizes = found[0].bucket_bytes
        spans.append(all_reduce_spans(found, [step.start_ms for step in together], at_once))
    if not spans:
        return None
    by_bucket = [percentiles([end - begin for begin, end in column]) for column in zip(*spans, strict=True)]
    whole = percentiles([covered_ms(step) for step in spans])
    return ExchangeSummary(
        buckets=tuple(
            BucketSummary(
                size_bytes=size,
                all_reduce_ms=times,
                algorithm_gb_per_s=algorithm_bandwidth(size, times.median),
                bus_gb_per_s=bus_bandwidth(size, times.median, world_size),
            )
            for size, times in zip(sizes, by_bucket, strict=True)
        ),
        all_reduce_ms=whole,
        bus_gb_per_s=bus_bandwidth(sum(sizes), whole.median, world_size),
    )


def algorithm_bandwidth(size_bytes: float, elapsed_ms: float) -> float:
    """10^9 bytes a second: the size of the data over the time (nccl-tests, doc/PERFORMANCE.md: algbw = S / t).

    Example:
        >>> algorithm_bandwidth(1e9, 500.0)
        2.0
    """
    return size_bytes / elapsed_ms / 1e6 if elapsed_ms else math.inf  # below what the clock tells apart


def bus_bandwidth(size_bytes: float, elapsed_ms: float, world_size: int) -> float:
    """10^9 bytes a second that the slowest link must carry: algbw x 2(n - 1)/n (nccl-tests, for an all-reduce).

    Example:
        >>> bus_bandwidth(1e9, 500.0, 4)
        3.0
    """
    return algorithm_bandwidth(size_bytes, elapsed_ms) * 2 * (world_size - 1) / world_size
