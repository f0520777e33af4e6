"""The measured steps of one rank: their phases, their gradient exchange, and percentiles over them."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from disttrain.analysis.comm_overlap import Exchange
from disttrain.records.record_types import ClockRecord, ExchangeRecord, Record, StartRecord, StepRecord

PHASES = (
    "data_ms",
    "forward_ms",
    "backward_ms",
    "backward_compute_ms",
    "exposed_comm_ms",
    "overlapped_comm_ms",
    "optimizer_ms",
    "step_ms",
)


@dataclass(frozen=True)
class MeasuredStep:
    """One measured step of one rank, in milliseconds; `start_ms` is on rank 0's clock."""

    start_ms: float
    data_ms: float
    forward_ms: float
    backward_ms: float
    optimizer_ms: float
    exposed_comm_ms: float | None
    overlapped_comm_ms: float | None
    exchange: Exchange | None

    @property
    def step_ms(self) -> float:
        return self.data_ms + self.forward_ms + self.backward_ms + self.optimizer_ms

    @property
    def backward_compute_ms(self) -> float | None:
        """The backward pass without the communication that it waits for."""
        if self.exposed_comm_ms is None:
            return None
        return self.backward_ms - self.exposed_comm_ms

    @property
    def own_ms(self) -> float:
        """The rank's own work, without any wait for other ranks."""
        return self.data_ms + self.forward_ms + (self.backward_compute_ms or 0.0) + self.optimizer_ms


def split_by_start(records: Sequence[Record]) -> list[list[Record]]:
    """The records of each start of a rank. A run that resumes starts again, possibly on another host."""
    starts: list[list[Record]] = []
    for record in records:
        if isinstance(record, StartRecord) or not starts:
            starts.append([])
        starts[-1].append(record)
    return starts


def steps_after_warmup(records: Sequence[Record], warmup_steps: int) -> list[StepRecord]:
    """The steps without the first `warmup_steps` of each start."""
    return [
        step
        for start in split_by_start(records)
        for step in [record for record in start if isinstance(record, StepRecord)][warmup_steps:]
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
        start_s = step.start_s or 0.0  # records of an early version have no start, and no exchange that would need it
        yield MeasuredStep(
            start_ms=(start_s - offset_at(start_s, clocks)) * 1000,
            data_ms=step.data_ms,
            forward_ms=step.forward_ms,
            backward_ms=step.backward_ms,
            optimizer_ms=step.optimizer_ms,
            exposed_comm_ms=step.exposed_comm_ms,
            overlapped_comm_ms=step.overlapped_comm_ms,
            exchange=exchanges.get(step.step),
        )


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
    ordered = sorted(values)
    return Percentiles(statistics.median(ordered), ordered[-(-95 * len(ordered) // 100) - 1], ordered[0])


def phase_percentiles(steps: Sequence[MeasuredStep]) -> dict[str, Percentiles | None]:
    """The statistics of each phase of one rank; None if the phase was not measured in every step."""
    statistics_by_phase: dict[str, Percentiles | None] = dict.fromkeys(PHASES)
    for name in PHASES:
        values = [getattr(step, name) for step in steps]
        if values and None not in values:
            statistics_by_phase[name] = percentiles(values)
    return statistics_by_phase
