"""A run of model `link`: how long an all-reduce takes, by size, over an allocation's link with nothing else to do."""

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
# Of each size, behind one that warms up; for a 95th percentile that is not the maximum, on a slow link for a median.
REPEATS, AT_LEAST = 40, 3
SHARE = 4  # a size takes a quarter of the time that is left, where that is enough for AT_LEAST
_FLOAT_BYTES = 4


def measure_link(
    group: Group, sizes_bytes: Sequence[int] = SIZES_BYTES, budget_s: float = BUDGET_S
) -> Iterator[LinkRecord]:
    """All-reduces of growing size, until the largest is done or the time is up; all ranks call this.

    The time of one is that of the rank on which it took longest, from a barrier to its end.

    Args:
        group: The ranks, two or more.
        sizes_bytes: That each rank gives, ascending; multiples of 4.
        budget_s: What all of it may take. One all-reduce may go over it.
    """
    deadline_s = time.monotonic() + budget_s
    expected_s, before_bytes = 0.0, 0
    for size_bytes in sizes_bytes:
        if before_bytes and not _repeats(expected_s * size_bytes / before_bytes, 1, deadline_s, group):
            return
        values = torch.zeros(size_bytes // _FLOAT_BYTES, device=group.device)  # a sum of ones would grow without end
        # The buffer's first touch, and what NCCL prepares for a size; where the size before foretold too little, the
        # time is up here, one all-reduce too late.
        (warm_ms,) = _slowest(values, 1, group)
        repeats = _repeats(warm_ms / 1000, 0, deadline_s, group)
        if not repeats:
            return
        times = percentiles(_slowest(values, repeats, group))
        expected_s, before_bytes = times.median / 1000, size_bytes
        yield LinkRecord(
            size_bytes=size_bytes,
            repeats=repeats,
            median_ms=times.median,
            p95_ms=times.p95,
            min_ms=times.minimum,
            algorithm_gb_per_s=algorithm_bandwidth(size_bytes, times.median),
            bus_gb_per_s=bus_bandwidth(size_bytes, times.median, group.env.world_size),
        )


def _repeats(one_s: float, warm_up: int, deadline_s: float, group: Group) -> int:
    """How many all-reduces of `one_s` each, behind `warm_up` of them, there is time for; by rank 0's clock.

    0 where that are not AT_LEAST.
    """
    affordable = (deadline_s - time.monotonic()) / max(one_s, 1e-9) - warm_up
    repeats = 0 if affordable < AT_LEAST else int(min(REPEATS, max(AT_LEAST, affordable / SHARE)))
    return group.broadcast_from_main(repeats)


def _slowest(values: torch.Tensor, repeats: int, group: Group) -> list[float]:
    """Milliseconds of each of some all-reduces, on the rank on which it took longest."""
    own = torch.tensor([time_all_reduce(values, group) for _ in range(repeats)], dtype=torch.float64)
    slowest: list[float] = torch.stack(group.gather(own)).amax(dim=0).tolist()
    return slowest


def time_all_reduce(values: torch.Tensor, group: Group) -> float:
    """Milliseconds of one all-reduce on this rank, from a barrier; all ranks call this."""
    group.barrier()
    synchronize(values.device)
    start_s = time.perf_counter()
    group.sum(values)
    synchronize(values.device)  # what is timed is the link, from edge to edge
    return (time.perf_counter() - start_s) * 1000


def synchronize(device: torch.device) -> None:
    """Waits until the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
