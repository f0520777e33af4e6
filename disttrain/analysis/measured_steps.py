"""The measured steps of one rank, each with its gradient exchange, and percentiles over them."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from disttrain.analysis.comm_overlap import Exchange
from disttrain.records.figures import percentile_95
from disttrain.records.record_types import ClockRecord, ExchangeRecord, Record, StartRecord, StepRecord
from disttrain.records.step_types import StepTimes


@dataclass(frozen=True)
class MeasuredStep:
    """One measured step of one rank.

    Attributes:
        times: The times of the step.
        exchange: Its gradient exchange; None if it was not measured, or there is none.
        clock_offset_s: This host's monotonic clock minus rank 0's.
    """

    times: StepTimes
    exchange: Exchange | None
    clock_offset_s: float = 0.0

    @property
    def start_ms(self) -> float:
        """The start of the step on rank 0's clock; 0 if it is not recorded."""
        return ((self.times.start_s or 0.0) - self.clock_offset_s) * 1000

    @property
    def own_ms(self) -> float:
        """The rank's own work, without any wait for other ranks."""
        times = self.times
        return times.data_ms + times.forward_ms + (times.backward_compute_ms or 0.0) + times.optimizer_ms


def split_by_start(records: Sequence[Record]) -> list[list[Record]]:
    """The records of each start of a rank. A run that resumes starts again, possibly on another host."""
    starts: list[list[Record]] = []
    for record in records:
        if isinstance(record, StartRecord) or not starts:
            starts.append([])
        starts[-1].append(record)
    return starts


def steps_after_warmup(records: Sequence[Record], warmup_steps: int) -> list[StepRecord]:
    """The steps without the first `warmup_steps` of each start, and without those that the profiler slowed."""
    return [
        step
        for start in split_by_start(records)
        for step in [record for record in start if isinstance(record, StepRecord)][warmup_steps:]
        if not step.profiled
    ]


def measured_steps(records: Sequence[Record], warmup_steps: int) -> list[MeasuredStep]:
    """The measured steps of one rank with their exchange, on rank 0's clock.

    Args:
        records: All records of the rank.
        warmup_steps: The number of first steps of each start that are not measured.
    """
    return [step for start in split_by_start(records) for step in _measured_steps_of_start(start, warmup_steps)]


def _measured_steps_of_start(start: Sequence[Record], warmup_steps: int) -> Iterator[MeasuredStep]:
    exchanges = {
        record.step: Exchange(record.bucket_bytes, record.ready_ms, record.done_ms)
        for record in start
        if isinstance(record, ExchangeRecord)
    }
    clocks = [record for record in start if isinstance(record, ClockRecord)]
    for step in steps_after_warmup(start, warmup_steps):
        # Records of an early version have no start, and no exchange that would need it.
        yield MeasuredStep(step, exchanges.get(step.step), offset_at(step.start_s or 0.0, clocks))


def offset_at(time_s: float, clocks: Sequence[ClockRecord]) -> float:
    """The clock offset to subtract from a time of this host, interpolated between the two measured offsets.

    Args:
        time_s: The time on this host's monotonic clock.
        clocks: The clock records of this start: two (before and after training), one if the start was interrupted, none
            without detailed timing.
    """
    if not clocks:
        return 0.0
    if len(clocks) == 1:
        return clocks[0].offset_s
    first, last = clocks
    share = (time_s - first.at_s) / max(1e-9, last.at_s - first.at_s)
    return first.offset_s + share * (last.offset_s - first.offset_s)


@dataclass(frozen=True)
class Percentiles:
    """Statistics of one figure."""

    median: float
    p95: float
    minimum: float


def percentiles(values: Sequence[float]) -> Percentiles:
    """Median, 95th percentile (nearest rank) and minimum.

    Example:
        >>> percentiles([1.0, 2.0, 3.0, 10.0])
        Percentiles(median=2.5, p95=10.0, minimum=1.0)
    """
    return Percentiles(statistics.median(values), percentile_95(values), min(values))
