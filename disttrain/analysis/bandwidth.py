"""The all-reduce time and bandwidth of each gradient bucket and of a step."""

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
    all_reduce_ms: Percentiles  # the spans of `all_reduce_spans`
    algorithm_gb_per_s: float  # from the median time
    bus_gb_per_s: float  # from the median time


@dataclass(frozen=True)
class ExchangeSummary:
    """All buckets over the measured steps."""

    buckets: tuple[BucketSummary, ...]
    all_reduce_ms: Percentiles  # per step: the time with at least one bucket in progress
    bus_gb_per_s: float  # from the median time


def summarise_exchanges(ranks: Sequence[Sequence[MeasuredStep]], concurrency: int) -> ExchangeSummary | None:
    """The gradient exchange, per bucket and in total; None if there is none or it was not measured.

    Args:
        ranks: The measured steps of each rank: the same steps with the same buckets.
        concurrency: The number of all-reduces that the backend processes at the same time.
    """
    world_size, spans = len(ranks), []
    sizes: tuple[int, ...] = ()
    for steps in zip(*ranks, strict=True):
        exchanges = [step.exchange for step in steps if step.exchange is not None]
        if len(exchanges) < world_size:
            return None
        sizes = exchanges[0].bucket_bytes
        spans.append(all_reduce_spans(exchanges, [step.start_ms for step in steps], concurrency))
    if not spans:
        return None
    by_bucket = [percentiles([end - begin for begin, end in column]) for column in zip(*spans, strict=True)]
    total = percentiles([covered_ms(step) for step in spans])
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
        all_reduce_ms=total,
        bus_gb_per_s=bus_bandwidth(sum(sizes), total.median, world_size),
    )


def algorithm_bandwidth(size_bytes: float, elapsed_ms: float) -> float:
    """Algorithm bandwidth in 10^9 bytes/s: size / time (nccl-tests, doc/PERFORMANCE.md: algbw = S / t).

    Example:
        >>> algorithm_bandwidth(1e9, 500.0)
        2.0
    """
    if not elapsed_ms:  # shorter than the clock's resolution
        return math.inf
    return size_bytes / elapsed_ms / 1e6


def bus_bandwidth(size_bytes: float, elapsed_ms: float, world_size: int) -> float:
    """Bus bandwidth of an all-reduce in 10^9 bytes/s: algbw x 2(n - 1)/n, the load of the slowest link (nccl-tests).

    Example:
        >>> bus_bandwidth(1e9, 500.0, 4)
        3.0
    """
    return algorithm_bandwidth(size_bytes, elapsed_ms) * 2 * (world_size - 1) / world_size
