"""Experiment 3: the phases of the measured steps over all ranks, the exchange bucket by bucket, and who is slow."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from disttrain.analysis.comm_overlap import Exchange, algorithm_bandwidth, bus_bandwidth, under_way, union_ms
from disttrain.records.record_types import ClockRecord, ExchangeRecord, Record, StartRecord, StepRecord

# A rank is named as slow when its own work takes so many times that of the others, in the median and nearly always.
SLOW, SLOWER, NEARLY_ALWAYS = 1.25, 1.1, 0.8
ENOUGH_STEPS = 20  # of fewer chance makes one rank slow now and then, or what it does for all, as writing a checkpoint
PHASES = (
    "data_ms",
    "forward_ms",
    "backward_ms",
    "backward_compute_ms",
    "exposed_ms",
    "hidden_ms",
    "optimizer_ms",
    "step_ms",
)


@dataclass(frozen=True)
class Measured:
    """One measured step of one rank; milliseconds, on rank 0's clock what is on a clock."""

    start_ms: float
    data_ms: float
    forward_ms: float
    backward_ms: float
    optimizer_ms: float
    exposed_ms: float | None
    hidden_ms: float | None
    exchange: Exchange | None

    @property
    def step_ms(self) -> float:
        return self.data_ms + self.forward_ms + self.backward_ms + self.optimizer_ms

    @property
    def backward_compute_ms(self) -> float | None:
        """The backward pass without the exchange that it waits for."""
        return None if self.exposed_ms is None else self.backward_ms - self.exposed_ms

    @property
    def own_ms(self) -> float:
        """What a rank does alone: no wait for another is in it."""
        return self.data_ms + self.forward_ms + (self.backward_compute_ms or 0.0) + self.optimizer_ms


def starts(records: Sequence[Record]) -> list[list[Record]]:
    """The records of each start of a rank: a run that goes on from a checkpoint starts again, maybe on another host."""
    found: list[list[Record]] = []
    for record in records:
        if isinstance(record, StartRecord) or not found:
            found.append([])
        found[-1].append(record)
    return found


def measured_steps(records: Sequence[Record], warmup_steps: int) -> list[StepRecord]:
    """The steps without the first ones of each start, in which it warms up."""
    return [
        step
        for start in starts(records)
        for step in [record for record in start if isinstance(record, StepRecord)][warmup_steps:]
    ]


def measured(records: Sequence[Record], warmup_steps: int) -> list[Measured]:
    """The measured steps of one rank, with their exchange, on rank 0's clock.

    Args:
        records: All records of the rank.
        warmup_steps: First steps of each start, which no measurement counts.
    """
    return [step for start in starts(records) for step in _measured(start, warmup_steps)]


def _measured(start: Sequence[Record], warmup_steps: int) -> Iterator[Measured]:
    exchanges = {record.step: record for record in start if isinstance(record, ExchangeRecord)}
    clocks = [record for record in start if isinstance(record, ClockRecord)]
    for step in measured_steps(start, warmup_steps):
        found = exchanges.get(step.step)
        start_s = step.start_s or 0.0  # of an earlier version's record, which had no exchange to lay on a clock
        yield Measured(
            start_ms=(start_s - offset_at(start_s, clocks)) * 1000,
            data_ms=step.data_ms,
            forward_ms=step.forward_ms,
            backward_ms=step.backward_ms,
            optimizer_ms=step.optimizer_ms,
            exposed_ms=step.exposed_ms,
            hidden_ms=step.hidden_ms,
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
class Spread:
    """Of one phase on one rank."""

    median: float
    p95: float
    minimum: float


@dataclass(frozen=True)
class Slowest:
    """The rank whose own work takes longest."""

    rank: int
    ratio: float  # median over the steps of its own work over the median of the others'
    is_slow: bool


def spread(values: Sequence[float]) -> Spread:
    """Median, 95th percentile (nearest rank) and minimum.

    Example:
        >>> spread([1.0, 2.0, 3.0, 10.0])
        Spread(median=2.5, p95=10.0, minimum=1.0)
    """
    ordered = sorted(values)
    return Spread(statistics.median(ordered), ordered[-(-95 * len(ordered) // 100) - 1], ordered[0])


def phases(steps: Sequence[Measured]) -> dict[str, Spread | None]:
    """Each phase of one rank; None where it was not watched."""
    found = {name: [getattr(step, name) for step in steps] for name in PHASES}
    return {name: None if not values or None in values else spread(values) for name, values in found.items()}


def slowest(ranks: Sequence[Sequence[Measured]]) -> Slowest | None:
    """Who does its own work slowest, and whether so much that it should be named; None for one rank.

    Args:
        ranks: The same measured steps of every rank.
    """
    return slowest_of([[step.own_ms for step in steps] for steps in ranks], ENOUGH_STEPS)


def slowest_of(times: Sequence[Sequence[float]], enough: int) -> Slowest | None:
    """The same of times.

    Args:
        times: Of the same pieces of work of every rank.
        enough: So many pieces at least before a rank is named as slow.
    """
    if len(times) < 2 or not times[0]:
        return None
    best: Slowest | None = None
    for rank, mine in enumerate(times):
        others = [statistics.median(each) for each in zip(*times[:rank], *times[rank + 1 :], strict=True)]
        ratios = [one / max(other, 1e-9) for one, other in zip(mine, others, strict=True)]
        ratio = statistics.median(ratios)
        often = sum(each >= SLOWER for each in ratios) / len(ratios)
        if best is None or ratio > best.ratio:
            is_slow = len(ratios) >= enough and ratio >= SLOW and often >= NEARLY_ALWAYS
            best = Slowest(rank, ratio, is_slow)
    return best


@dataclass(frozen=True)
class Bucket:
    """One gradient bucket over the measured steps."""

    size_bytes: int
    all_reduce_ms: Spread  # from the last rank ready and an earlier bucket done, to done on every rank
    algorithm_gb_per_s: float  # of the median
    bus_gb_per_s: float  # of the median


@dataclass(frozen=True)
class Exchanges:
    """All buckets over the measured steps."""

    buckets: tuple[Bucket, ...]
    all_reduce_ms: Spread  # of a whole step: while any bucket was under way
    bus_gb_per_s: float  # of the median


def exchanges(ranks: Sequence[Sequence[Measured]], at_once: int) -> Exchanges | None:
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
        spans.append(under_way(found, [step.start_ms for step in together], at_once))
    if not spans:
        return None
    by_bucket = [spread([end - begin for begin, end in column]) for column in zip(*spans, strict=True)]
    whole = spread([union_ms(step) for step in spans])
    return Exchanges(
        buckets=tuple(
            Bucket(
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
