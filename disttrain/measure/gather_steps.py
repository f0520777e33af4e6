"""The measured steps of every rank, brought together on each of them."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Sequence

import torch

from disttrain.analysis.comm_overlap import Exchange
from disttrain.analysis.measured_steps import MeasuredStep
from disttrain.distributed.group import Group
from disttrain.records.record_types import ExchangeRecord, Record

# Of the last so many steps: enough for a 95th percentile, and some MB over hundreds of ranks.
MAX_STEPS = 1000
_PHASES = 7


def drop_old_exchanges(records: Iterable[Record]) -> list[Record]:
    """The records of a rank, without the older of its exchange records, which would take GBs of 10^5 steps."""
    kept: list[Record | None] = []
    exchanges: deque[int] = deque()  # where they are
    for record in records:
        if isinstance(record, ExchangeRecord):
            exchanges.append(len(kept))
            if len(exchanges) > MAX_STEPS:
                kept[exchanges.popleft()] = None
        kept.append(record)
    return [record for record in kept if record is not None]


def gather_measured_steps(own: Sequence[MeasuredStep], group: Group) -> list[list[MeasuredStep]]:
    """The last measured steps of all ranks, by rank; all ranks call this, and rank 0 alone gets them.

    Args:
        own: Of this rank; the same steps as of every other.
        group: The ranks.
    """
    steps = [step for step in own[-MAX_STEPS:] if _layout(step) == _layout(own[-1])]
    everyone = group.gather(torch.tensor([pack(step) for step in steps], dtype=torch.float64)) if steps else []
    if not everyone or not group.is_main:
        return [[] for _ in range(group.env.world_size)]
    return [[unpack(row) for row in theirs.tolist()] for theirs in everyone]


def _layout(step: MeasuredStep) -> tuple[int, ...]:
    """Its buckets: DDP may lay out others in its first steps."""
    return step.exchange.bucket_bytes if step.exchange else ()


def pack(step: MeasuredStep) -> list[float]:
    """A step as a row of figures; rows of all ranks are of one length, since all have the same buckets."""
    phases = (step.data_ms, step.forward_ms, step.backward_ms, step.optimizer_ms)
    communication = (step.exposed_comm_ms, step.overlapped_comm_ms)
    row = [step.start_ms, *phases, *(math.nan if value is None else value for value in communication)]
    if (exchange := step.exchange) is not None:
        row += [*map(float, exchange.bucket_bytes), *exchange.ready_ms, *exchange.done_ms]
    return row


def unpack(row: list[float]) -> MeasuredStep:
    """The step of such a row."""
    start_ms, data, forward, backward, optimizer, exposed, hidden = row[:_PHASES]
    rest = row[_PHASES:]
    count = len(rest) // 3
    exchange = None
    if count:
        sizes = tuple(int(size) for size in rest[:count])
        exchange = Exchange(sizes, tuple(rest[count : 2 * count]), tuple(rest[2 * count :]))
    return MeasuredStep(
        start_ms=start_ms,
        data_ms=data,
        forward_ms=forward,
        backward_ms=backward,
        optimizer_ms=optimizer,
        exposed_comm_ms=None if math.isnan(exposed) else exposed,
        overlapped_comm_ms=None if math.isnan(hidden) else hidden,
        exchange=exchange,
    )
