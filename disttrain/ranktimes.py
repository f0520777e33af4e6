"""The measured steps of every rank, brought together on each of them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from disttrain.dist import Group
from disttrain.exchange import Exchange
from disttrain.propagation import Measured

# Of the last so many steps: enough for a 95th percentile, and some MB over hundreds of ranks.
AT_MOST = 1000
_PHASES = 7


def gather_measured(own: Sequence[Measured], group: Group) -> list[list[Measured]]:
    """The measured steps of all ranks, by rank; all ranks call this.

    Args:
        own: Of this rank; the same steps as of every other.
        group: The ranks.
    """
    if not own:  # nor has any other rank
        return [[] for _ in range(group.env.world_size)]
    mine = torch.tensor([pack(step) for step in own[-AT_MOST:]], dtype=torch.float64, device=group.device)
    return [[unpack(row) for row in theirs.tolist()] for theirs in group.gather(mine)]


def pack(step: Measured) -> list[float]:
    """A step as a row of figures; rows of all ranks are of one length, since all have the same buckets."""
    phases = (step.data_ms, step.forward_ms, step.backward_ms, step.optimizer_ms, step.exposed_ms, step.hidden_ms)
    row = [step.start_ms, *(math.nan if value is None else value for value in phases)]
    if (exchange := step.exchange) is not None:
        row += [*map(float, exchange.bucket_bytes), *exchange.ready_ms, *exchange.done_ms]
    return row


def unpack(row: list[float]) -> Measured:
    """The step of such a row."""
    start_ms, data, forward, backward, optimizer, exposed, hidden = row[:_PHASES]
    rest = row[_PHASES:]
    count = len(rest) // 3
    exchange = None
    if count:
        sizes = tuple(int(size) for size in rest[:count])
        exchange = Exchange(sizes, tuple(rest[count : 2 * count]), tuple(rest[2 * count :]))
    return Measured(
        start_ms=start_ms,
        data_ms=data,
        forward_ms=forward,
        backward_ms=backward,
        optimizer_ms=optimizer,
        exposed_ms=None if math.isnan(exposed) else exposed,
        hidden_ms=None if math.isnan(hidden) else hidden,
        exchange=exchange,
    )
