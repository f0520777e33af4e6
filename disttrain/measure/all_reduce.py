"""Model `link`: the time of all-reduces by size, over an otherwise idle link of an allocation."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

import torch

from disttrain.analysis.bandwidth import algorithm_bandwidth, bus_bandwidth
from disttrain.analysis.measured_steps import percentiles
from disttrain.distributed.group import Group
from disttrain.records.record_types import LinkRecord

SIZES_BYTES = tuple(4096 * 4**power for power in range(9))  # 4 KiB to 256 MiB
BUDGET_S = 30.0
# The number of timed all-reduces of a size, after one warm-up. The 95th percentile of 40 is not their maximum. On a
# slow link, 3 give a median.
MAX_REPEATS, MIN_REPEATS = 40, 3
TIME_DIVISOR = 4  # a size takes a quarter of the remaining time if that allows MIN_REPEATS
_FLOAT_BYTES = 4


def measure_link(
    group: Group, sizes_bytes: Sequence[int] = SIZES_BYTES, budget_s: float = BUDGET_S
) -> Iterator[LinkRecord]:
    """Times all-reduces of increasing size until the largest is done or the time is up; all ranks call this.

    The time of one all-reduce is from a barrier to its end, on the rank where it takes longest.

    Args:
        group: The ranks, two or more.
        sizes_bytes: The sizes of the tensor on each rank, ascending; multiples of 4.
        budget_s: The time limit for all sizes. A single all-reduce may exceed it.

    Yields:
        One record per measured size.
    """
    deadline_s = time.monotonic() + budget_s
    previous_s, previous_bytes = 0.0, 0
    for size_bytes in sizes_bytes:
        if previous_bytes and not _repeats(previous_s * size_bytes / previous_bytes, 1, deadline_s, group):
            return
        # Zeros, because a sum of ones would grow with every repeat.
        values = torch.zeros(size_bytes // _FLOAT_BYTES, device=group.device)
        # The warm-up includes the first memory access and NCCL's setup for this size. If the estimate from the previous
        # size was too low, the deadline is noticed only now, one all-reduce late.
        (warm_up_ms,) = _slowest_times(values, 1, group)
        repeats = _repeats(warm_up_ms / 1000, 0, deadline_s, group)
        if not repeats:
            return
        times = percentiles(_slowest_times(values, repeats, group))
        previous_s, previous_bytes = times.median / 1000, size_bytes
        yield LinkRecord(
            size_bytes=size_bytes,
            repeats=repeats,
            median_ms=times.median,
            p95_ms=times.p95,
            min_ms=times.minimum,
            algorithm_gb_per_s=algorithm_bandwidth(size_bytes, times.median),
            bus_gb_per_s=bus_bandwidth(size_bytes, times.median, group.env.world_size),
        )


def _repeats(expected_s: float, warm_up: int, deadline_s: float, group: Group) -> int:
    """The number of all-reduces that fit before the deadline on rank 0's clock; 0 if that is below MIN_REPEATS.

    Args:
        expected_s: The expected time of one all-reduce.
        warm_up: The number of all-reduces before the timed ones.
        deadline_s: The deadline on the monotonic clock.
        group: The ranks.
    """
    affordable = (deadline_s - time.monotonic()) / max(expected_s, 1e-9) - warm_up
    repeats = 0
    if affordable >= MIN_REPEATS:
        repeats = int(min(MAX_REPEATS, max(MIN_REPEATS, affordable / TIME_DIVISOR)))
    return group.broadcast_from_main(repeats)


def _slowest_times(values: torch.Tensor, repeats: int, group: Group) -> list[float]:
    """The time of each all-reduce on the rank where it takes longest, in milliseconds; on other ranks than 0 their own.

    Rank 0 writes the records and decides on the repeats.
    """
    own = torch.tensor([time_all_reduce(values, group) for _ in range(repeats)], dtype=torch.float64)
    slowest: list[float] = torch.stack(group.gather(own) or [own]).amax(dim=0).tolist()
    return slowest


def time_all_reduce(values: torch.Tensor, group: Group) -> float:
    """The time of one all-reduce on this rank from a barrier to its end, in milliseconds; all ranks call this."""
    group.barrier()
    synchronize(values.device)
    start_s = time.perf_counter()
    group.sum(values)
    synchronize(values.device)  # the end of the timed interval: the all-reduce must be complete
    return (time.perf_counter() - start_s) * 1000


def synchronize(device: torch.device) -> None:
    """Waits until the device has completed all queued work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
