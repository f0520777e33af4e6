"""The record types of gradient exchanges, clocks, links and the checks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from annotated_types import Unit, doc

from disttrain.records.figure_sources import CHECKS, DDP_LOGGER, DEVICE_CLOCK, HOOK, HOST_CLOCK, LOOP
from disttrain.records.figures import last_as

# A field with a default was added later; the default lets older records be read.


@dataclass(frozen=True, kw_only=True)
class CheckRecord:
    """Results of one rank in the check before training (start_check_s). All ranks do each round at the same time."""

    kind: ClassVar[str] = "check"
    product_size: Annotated[
        int, doc("Rows and columns of the multiplied matrices; fp32 on a CPU, the run's precision on a GPU."), LOOP
    ]
    gflop_per_s: Annotated[
        float,
        Unit("10^9 operations/s"),
        doc("Speed of the matrix product: 2 x product_size^3 / median time over the rounds."),
        HOST_CLOCK,
    ]
    best_gflop_per_s: Annotated[
        float,
        Unit("10^9 operations/s"),
        doc("Speed in the fastest round: 2 x product_size^3 / minimum time over the rounds."),
        HOST_CLOCK,
    ]
    slowest_rank: Annotated[int | None, doc("The rank with the highest slowest_ratio; null with one rank."), CHECKS]
    slowest_ratio: Annotated[
        float | None,
        doc(
            "Time of the slowest rank's matrix product / median time of the other ranks', median over the rounds;"
            " null with one rank."
        ),
        CHECKS,
    ]
    all_reduce_bytes: Annotated[
        int | None, Unit("bytes"), doc("Bytes per rank in the timed all-reduce; null with one rank."), LOOP
    ]
    all_reduce_ms: Annotated[
        float | None,
        Unit("ms"),
        doc(
            "All-reduce time from a barrier to its end, on the slowest rank, median over the repeats;"
            " null with one rank."
        ),
        CHECKS,
    ]
    algorithm_gb_per_s: Annotated[
        float | None,
        Unit("10^9 bytes/s"),
        doc("Algorithm bandwidth: all_reduce_bytes / all_reduce_ms; null with one rank."),
        CHECKS,
    ]
    bus_gb_per_s: Annotated[
        float | None,
        Unit("10^9 bytes/s"),
        doc("Bus bandwidth: algorithm_gb_per_s x 2(n - 1)/n; null with one rank."),
        CHECKS,
    ]
    elapsed_s: Annotated[float, Unit("s"), doc("Duration of the complete check."), HOST_CLOCK]


@dataclass(frozen=True, kw_only=True)
class ExchangeRecord:
    """The gradient buckets of one step on one rank, in the order in which they were ready (detailed_timing)."""

    kind: ClassVar[str] = "exchange"
    step: Annotated[int, doc("Number of the step, from 1."), LOOP]
    bucket_bytes: Annotated[
        tuple[int, ...], Unit("bytes"), doc("Bytes that each bucket sends, after compression."), HOOK
    ]
    ready_ms: Annotated[
        tuple[float, ...],
        Unit("ms"),
        doc("Time at which each bucket's gradients were computed, from the start of the step."),
        HOOK,
    ]
    done_ms: Annotated[
        tuple[float, ...],
        Unit("ms"),
        doc("Time at which each bucket's sum over the ranks was complete, from the start of the step."),
        HOOK,
    ]


@dataclass(frozen=True, kw_only=True)
class ClockRecord:
    """This host's monotonic clock against that of rank 0, before and after training (detailed_timing)."""

    kind: ClassVar[str] = "clock"
    at_s: Annotated[float, Unit("s"), doc("Time of the measurement, on this host's monotonic clock."), HOST_CLOCK]
    offset_s: Annotated[
        float,
        Unit("s"),
        doc(
            "This clock minus rank 0's: (sent + received) / 2 - rank 0's answer, from the shortest of 20 round trips;"
            " 0 on rank 0."
        ),
        HOST_CLOCK,
    ]
    error_s: Annotated[
        float, Unit("s"), doc("Largest possible error of offset_s: (received - sent) / 2; 0 on rank 0."), HOST_CLOCK
    ]


@dataclass(frozen=True, kw_only=True)
class CrossCheckRecord:
    """Three estimates of the exposed communication, from passes before the first step (detailed_timing).

    The figures are medians over the passes.
    """

    kind: ClassVar[str] = "cross_check"
    passes: Annotated[
        int, doc("Number of passes with the exchange, and of passes without it, on the same batches."), LOOP
    ]
    backward_ms: Annotated[float, Unit("ms"), doc("Backward pass with the exchange."), DEVICE_CLOCK]
    no_sync_backward_ms: Annotated[
        float, Unit("ms"), doc("Backward pass without the exchange, under DDP's no_sync."), DEVICE_CLOCK
    ]
    no_sync_exposed_ms: Annotated[
        float,
        Unit("ms"),
        doc("Estimate by no_sync: backward_ms - no_sync_backward_ms."),
        DEVICE_CLOCK,
        last_as(
            meaning="Exposed communication in rank 0's cross-check, by no_sync: the amount by which the backward pass"
            " is shorter without the exchange."
        ),
    ]
    exposed_comm_ms: Annotated[
        float,
        Unit("ms"),
        doc("Estimate by the bucket times, as in the step records, of the same passes."),
        HOOK,
        last_as("check_exposed_ms", "Exposed communication in rank 0's cross-check, by the bucket times."),
    ]
    exchange_ms: Annotated[float, Unit("ms"), doc("Exposed plus overlapped communication."), HOOK]
    is_check: Annotated[
        bool,
        doc(
            "True if exchange_ms > 3 x max(no_sync_backward_ms, backward_ms - exposed_comm_ms);"
            " only then must the first two estimates agree."
        ),
        HOOK,
        last_as(
            "no_sync_is_check",
            "True if the exchange takes over 3 times as long as the backward pass, so that no_sync_exposed_ms and"
            " check_exposed_ms must agree; if false, no_sync_exposed_ms is only a bound.",
        ),
    ]
    ddp_exposed_ms: Annotated[
        float | None,
        Unit("ms"),
        doc(
            "Estimate by DDP's logger: backward_comm_time - backward_compute_comm_overlap_time;"
            " null if this torch does not log it."
        ),
        DDP_LOGGER,
        last_as(
            meaning="Exposed communication in rank 0's cross-check, by DDP's logger;"
            " null if this torch does not log it."
        ),
    ]
    elapsed_s: Annotated[float, Unit("s"), doc("Duration of all passes, before the first step."), HOST_CLOCK]


@dataclass(frozen=True, kw_only=True)
class LinkRecord:
    """All-reduces of one size without other work, timed from a barrier on the slowest rank; written by rank 0."""

    kind: ClassVar[str] = "link"
    size_bytes: Annotated[int, Unit("bytes"), doc("Bytes per rank in the all-reduce."), LOOP]
    repeats: Annotated[int, doc("Number of timed all-reduces, without the warm-up."), LOOP]
    median_ms: Annotated[float, Unit("ms"), doc("Median over the repeats."), HOST_CLOCK]
    p95_ms: Annotated[float, Unit("ms"), doc("95th percentile over the repeats, by nearest rank."), HOST_CLOCK]
    min_ms: Annotated[float, Unit("ms"), doc("Minimum over the repeats."), HOST_CLOCK]
    algorithm_gb_per_s: Annotated[
        float, Unit("10^9 bytes/s"), doc("Algorithm bandwidth: size_bytes / median_ms."), HOST_CLOCK
    ]
    bus_gb_per_s: Annotated[
        float, Unit("10^9 bytes/s"), doc("Bus bandwidth: algorithm_gb_per_s x 2(n - 1)/n."), HOST_CLOCK
    ]
