"""The first sweep: its allocations fit the partition, and its texts are balanced and can be learned."""

from __future__ import annotations

import dataclasses

import pytest

from jobs.site.choices import Choices
from jobs.site.first_sweep import first_texts, possible_allocations
from jobs.site.site_facts import GpuKind, NodeKind, Partition, SiteFacts


def site(nodes: int, gpus: int, min_nodes: int = 0, max_nodes: int | None = None) -> SiteFacts:
    kind = NodeKind(nodes, nodes, 64, 256_000, (GpuKind("a100", gpus),) if gpus else ())
    partition = Partition("gpu", is_default=True, node_kinds=(kind,), min_nodes=min_nodes, max_nodes=max_nodes)
    return SiteFacts(partitions=(partition,))


@pytest.mark.parametrize(
    ("facts", "allocations"),
    [
        (site(2, 4), ("1x1", "1x4", "2x2", "2x1")),
        (site(1, 8), ("1x1", "1x4")),
        (site(2, 2), ("1x1", "1x2", "2x2", "2x1")),
        (site(4, 1), ("1x1", "2x1")),
        (site(4, 4, max_nodes=1), ("1x1", "1x4")),
        (site(4, 4, min_nodes=2), ("2x2", "2x1")),
        (site(2, 0), ("1x1", "1x2", "2x1")),
        (site(2, 0, max_nodes=1), ("1x1", "1x2")),
        (SiteFacts(), ("1x1",)),
    ],
)
def test_allocations_that_the_partition_can_give(facts: SiteFacts, allocations: tuple[str, ...]) -> None:
    assert possible_allocations(facts, Choices()) == allocations
    chosen = dataclasses.replace(Choices(), partition="gpu")
    assert possible_allocations(facts, chosen) == allocations


def test_the_texts_are_balanced_and_differ() -> None:
    rows = {name: text.splitlines()[1:] for name, text in first_texts().items()}
    assert {name: len(found) for name, found in rows.items()} == {"train.tsv": 576, "dev.tsv": 144}
    assert set(rows["train.tsv"]).isdisjoint(rows["dev.tsv"])
    for found in rows.values():
        assert sum(row.endswith("\t1") for row in found) * 2 == len(found)
