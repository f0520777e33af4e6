"""Experiment 3: the phases of the measured steps over all ranks, the exchange bucket by bucket, and who is slow."""

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
    """One measured step of one rank; milliseconds, on rank 0's clock what is on a clock."""

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
        """The backward pass without the exchange that it waits for."""
        return None if self.exposed_comm_ms is None else self.backward_ms - self.exposed_comm_ms

    @property
    def own_ms(self) -> float:
        """What a rank does alone: no wait for another is in it."""
        return self.data_ms + self.forward_ms + (self.backward_compute_ms or 0.0) + self.optimizer_ms


def split_by_start(records: Sequence[Record]) -> list[list[Record]]:
    """The records of each start of a rank: a run that goes on from a checkpoint starts again, maybe on another host."""
    found: list[list[Record]] = []
    for record in records:
        if isinstance(record, StartRecord) or not found:
            found.append([])
        found[-1].append(record)
    return found


def steps_after_warmup(records: Sequence[Record], warmup_steps: int) -> list[StepRecord]:
    """The steps without the first ones of each start, in which it warms up."""
    return [
        step
        for start in split_by_start(records)
        for step in [record for record in start if isinstance(record, StepRecord)][warmup_steps:]
    ]


def measured_steps(records: Sequence[Record], warmup_steps: int) -> list[MeasuredStep]:
    """The measured steps of one rank, with their exchange, on rank 0's clock.

    Args:
        records: All records of the rank.
        warmup_steps: First steps of each start, which no measurement counts.
    """
    return [step for start in split_by_start(records) for step in _measured_steps_of_start(start, warmup_steps)]


def _measured_steps_of_start(start: Sequence[Record], warmup_steps: int) -> Iterator[MeasuredStep]:
    exchanges = {record.step: record for record in start if isinstance(record, ExchangeRecord)}
    clocks = [record for record in start if isinstance(record, ClockRecord)]
    for step in steps_after_warmup(start, warmup_steps):
        found = exchanges.get(step.step)
        start_s = step.start_s or 0.0  # of an earlier version's record, which had no exchange to lay on a clock
        yield MeasuredStep(
            start_ms=(start_s - offset_at(start_s, clocks)) * 1000,
            data_ms=step.data_ms,
            forward_ms=step.forward_ms,
            backward_ms=step.backward_ms,
            optimizer_ms=step.optimizer_ms,
            exposed_comm_ms=step.exposed_comm_ms,
            overlapped_comm_ms=step.overlapped_comm_ms,
            exchange=Exchange(found.bucket_bytes, found.ready_ms, found.done_ms) if found else None,
        )


def offset_at(time_s: float, clocks: Sequence[ClockRecord]) -> float:
    """What to take off a time of this host: on the line through what was measured before training and behind it.

    Args:
        time_s: By this host's monotonic clock.
        clocks: Of this start: none where it was not asked for, one where the start was cut off.
    """
    if len(clocks) < 2:
        return clocks[0].offset_s if clocks else 0.0
    first, last = clocks
    share = (time_s - first.at_s) / max(1e-9, last.at_s - first.at_s)
    return first.offset_s + share * (last.offset_s - first.offset_s)


@dataclass(frozen=True)
class Percentiles:
    """Of one phase on one rank."""

    median: float
    p95: float
    minimum: float


def percentiles(values: Sequence[float]) -> Percentiles:
    """Median, 95th percentile (nearest rank) and minimum.

    Example:
        >>> spread([1.0, 2.0, 3.0, 10.0])
        Spread(median=2.5, p95=10.0, minimum=1.0)
    """
    ordered = sorted(values)
    return Percentiles(statistics.median(ordered), ordered[-(-95 * len(ordered) // 100) - 1], ordered[0])


def phase_percentiles(steps: Sequence[MeasuredStep]) -> dict[str, Percentiles | None]:
    """Each phase of one rank; None where it was not watched."""
    found = {name: [getattr(step, name) for step in steps] for name in PHASES}
    return {name: None if not values or None in values else percentiles(values) for name, values in found.items()}
