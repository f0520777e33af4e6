"""Computes what grouping by length costs and what it mixes: python -m tests.disttrain.data.grouping --help."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from disttrain.data.batches import SORTED_TOGETHER, GlobalBatches
from tests.benchmarks import store, tables

TITLE = "Grouping by length"
SIZES = (2_000, 20_000)
GROUPS = (10, 25, 50, SORTED_TOGETHER, 200)
GLOBAL_BATCH = 16
_NOTE = f"""\
Computed, not timed. The texts have log-normal lengths from 3 to 512 tokens (median 33), the global batch is \
{GLOBAL_BATCH}, and the order is that of the training loop. Padding is the number of tokens of an epoch with their \
padding, divided by that number if the texts are sorted over the complete epoch. Pairs that meet again is the share of \
the pairs of texts in a batch that are in one batch in the next epoch too. A group is never more than a quarter of the \
epoch. Random order is `group_by_length: false`."""


def plan_of(examples: int, group: int | None = SORTED_TOGETHER, world_size: int = 2) -> GlobalBatches:
    """The plan of an epoch of texts of wide lengths; without a group they are in random order."""
    lengths = wide_lengths(examples) if group is not None else None
    return GlobalBatches(
        examples,
        GLOBAL_BATCH // world_size,
        world_size,
        accum_steps=1,
        seed=0,
        lengths=lengths,
        sorted_together=group or SORTED_TOGETHER,
    )


def wide_lengths(examples: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Log-normal lengths from 3 to 512 tokens, with a median of 33, as texts of several kinds have."""
    return np.random.default_rng(0).lognormal(3.5, 0.8, examples).clip(3, 512).astype(np.int64)


def costs(plan: GlobalBatches) -> tuple[float, float]:
    """The padding of the first epoch, relative to a sort over it, and the share of pairs that meet again in the second.

    Examples that do not fill a batch are left out.
    """
    lengths, size = wide_lengths(plan.examples), plan.global_batch
    full = plan.examples // size * size
    first, second = (plan.order(epoch, size)[:full].reshape(-1, size) for epoch in (0, 1))
    padded = lengths[first].max(axis=1).sum()
    least = np.sort(lengths[first].ravel())[size - 1 :: size].sum()
    batch_of = np.full(plan.examples, -1)
    batch_of[second] = np.arange(len(second))[:, None]
    next_batch = batch_of[first]
    together = (next_batch[:, :, None] == next_batch[:, None, :]) & (next_batch[:, :, None] >= 0)
    pairs = len(first) * size * (size - 1)
    return float(padded / least), float((together.sum() - (next_batch >= 0).sum()) / pairs)


def benchmark(out: Annotated[Path | None, typer.Option(help="The Markdown file to write.")] = None) -> None:
    """Computes padding and mixing for some sizes of groups."""
    rows = []
    for examples in SIZES:
        for group in (*GROUPS, None):
            padding, again = costs(plan_of(examples, group))
            name = f"{group} batches" if group else "random order"
            if group == SORTED_TOGETHER:
                name += " (ours)"
            rows.append((f"{examples:,}", name, f"{padding:.2f}", f"{100 * again:.1f} %"))
    grid = tables.Grid("Padding and mixing", _NOTE, ("texts", "group", "padding", "pairs that meet again"), tuple(rows))
    tables.publish(TITLE, tables.facts("tests.disttrain.data.grouping", store.machine()), [grid], out)


if __name__ == "__main__":
    typer.run(benchmark)
