"""Gathers the measured steps, and other figures, of all ranks."""

from __future__ import annotations

import dataclasses
import math
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

import torch

from disttrain.analysis.comm_overlap import Exchange
from disttrain.analysis.measured_steps import MeasuredStep
from disttrain.distributed.group import Group
from disttrain.records.record_types import ExchangeRecord, Record
from disttrain.records.step_types import StartupRecord, StepTimes

T = TypeVar("T")

# Only this number of last steps is gathered: enough for a 95th percentile, and a few MB for hundreds of ranks.
MAX_STEPS = 1000


def drop_old_exchanges(records: Iterable[Record]) -> list[Record]:
    """The records of a rank with only the last MAX_STEPS exchange records: those of 10^5 steps would take GBs."""
    remaining: list[Record | None] = []
    exchange_indices: deque[int] = deque()
    for record in records:
        if isinstance(record, ExchangeRecord):
            exchange_indices.append(len(remaining))
            if len(exchange_indices) > MAX_STEPS:
                remaining[exchange_indices.popleft()] = None
        remaining.append(record)
    return [record for record in remaining if record is not None]


def gather_measured_steps(own: Sequence[MeasuredStep], group: Group) -> list[list[MeasuredStep]]:
    """The last measured steps of all ranks, by rank. All ranks call this; only rank 0 receives them.

    Args:
        own: The measured steps of this rank; every rank passes the same steps.
        group: The ranks.
    """
    steps = [step for step in own[-MAX_STEPS:] if _layout(step) == _layout(own[-1])]
    gathered: list[torch.Tensor] = []
    if steps:
        gathered = group.gather(torch.tensor([pack(step) for step in steps], dtype=torch.float64))
    if not gathered or not group.is_main:
        return [[] for _ in range(group.env.world_size)]
    return [[unpack(row) for row in rows.tolist()] for rows in gathered]


def _layout(step: MeasuredStep) -> tuple[int, ...]:
    """The bucket sizes of a step: DDP may use other buckets in its first steps."""
    if step.exchange is None:
        return ()
    return step.exchange.bucket_bytes


def pack(step: MeasuredStep) -> list[float]:
    """A step as a row of numbers. All ranks have the same buckets, so all rows have one length."""
    row = [step.clock_offset_s, *pack_fields(StepTimes, step.times)]
    if (exchange := step.exchange) is not None:
        row += [*map(float, exchange.bucket_bytes), *exchange.ready_ms, *exchange.done_ms]
    return row


def unpack(row: list[float]) -> MeasuredStep:
    """The step of a row that `pack` returned."""
    offset_s, *values = row
    count = len(dataclasses.fields(StepTimes))
    times = unpack_fields(StepTimes, values[:count])
    rest = values[count:]
    count = len(rest) // 3
    exchange = None
    if count:
        sizes = tuple(int(size) for size in rest[:count])
        exchange = Exchange(sizes, tuple(rest[count : 2 * count]), tuple(rest[2 * count :]))
    return MeasuredStep(times, exchange, offset_s)


def gather_startups(own: StartupRecord, group: Group) -> list[StartupRecord]:
    """The startup records of all ranks, by rank. All ranks call this; the others than rank 0 receive only their own."""
    return gather_figures(own, group)


def gather_figures(own: T, group: Group) -> list[T]:
    """The objects of all ranks, by rank. All ranks call this; the others than rank 0 receive only their own.

    Args:
        own: A dataclass whose fields are numbers or None.
        group: The ranks.
    """
    gathered = group.gather(torch.tensor(pack_fields(type(own), own), dtype=torch.float64))
    if not gathered or not group.is_main:
        return [own]
    return [unpack_fields(type(own), row.tolist()) for row in gathered]


def pack_fields(kind: type[Any], values: Any) -> list[float]:
    """The fields of a record type as numbers, with NaN for None."""
    return [_none_to_nan(getattr(values, field.name)) for field in dataclasses.fields(kind)]


def unpack_fields(kind: type[T], row: Sequence[float]) -> T:
    """The object whose fields `pack_fields` returned."""
    fields = dataclasses.fields(kind)  # type: ignore[arg-type]
    return kind(**{field.name: _nan_to_none(value) for field, value in zip(fields, row, strict=True)})


def _none_to_nan(value: float | None) -> float:
    if value is None:
        return math.nan
    return value


def _nan_to_none(value: float) -> float | None:
    if math.isnan(value):
        return None
    return value
