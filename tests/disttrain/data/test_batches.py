"""Each example is used once, for any number of examples, ranks, batches and accumulation steps."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from disttrain.data.batches import BEGINNING, Batch, GlobalBatches, Indices, eval_batches, load_batches, rank_slice
from tests.disttrain.data.grouping import costs, plan_of

CPU = torch.device("cpu")

plans = st.builds(
    GlobalBatches,
    examples=st.integers(1, 60),
    rank_batch=st.integers(1, 7),
    world_size=st.integers(1, 6),
    accum_steps=st.integers(1, 3),
    seed=st.integers(0, 2**32 - 1),
)


def with_lengths(plan: GlobalBatches) -> GlobalBatches:
    return dataclasses.replace(plan, lengths=np.random.default_rng(plan.seed).integers(1, 9, plan.examples))


plans = plans | plans.map(with_lengths)


@given(plans, st.integers(1, 3))
def test_an_epoch_has_each_example_once(plan: GlobalBatches, epochs: int) -> None:
    seen: list[list[int]] = [[] for _ in range(epochs)]
    for rank in range(plan.world_size):
        for step in plan.rank_steps(rank, epochs * plan.steps_per_epoch):
            if step.examples:
                seen[step.epoch] += np.concatenate(step.batches).tolist()
    assert [sorted(epoch) for epoch in seen] == [list(range(plan.examples))] * epochs


@given(plans)
def test_ranks_agree_on_each_step(plan: GlobalBatches) -> None:
    ranks = [list(plan.rank_steps(rank, plan.steps_per_epoch)) for rank in range(plan.world_size)]
    for rank_steps in zip(*ranks, strict=True):
        counts = [step.examples for step in rank_steps]
        assert sum(counts) == rank_steps[0].global_examples <= plan.global_batch
        assert max(counts) - min(counts) <= 1
        assert len({(step.step, step.epoch, step.last_of_epoch, step.global_examples) for step in rank_steps}) == 1
        for step in rank_steps:
            assert 1 <= len(step.batches) <= plan.accum_steps
            assert all(1 <= len(batch) <= plan.rank_batch for batch in step.batches)
    assert [step.last_of_epoch for step in ranks[0]] == [False] * (plan.steps_per_epoch - 1) + [True]


@given(
    examples=st.integers(1, 60),
    rank_batch=st.integers(1, 4),
    world_size=st.integers(1, 5),
    accum_steps=st.integers(1, 3),
    seed=st.integers(0, 9),
    grouped=st.booleans(),
)
def test_a_step_does_not_depend_on_ranks(
    examples: int, rank_batch: int, world_size: int, accum_steps: int, seed: int, grouped: bool
) -> None:
    several = GlobalBatches(examples, rank_batch, world_size, accum_steps, seed)
    if grouped:
        several = with_lengths(several)
    alone = dataclasses.replace(several, rank_batch=several.global_batch, world_size=1, accum_steps=1)
    steps = 2 * alone.steps_per_epoch
    ranks = [list(several.rank_steps(rank, steps)) for rank in range(world_size)]
    for number, step in enumerate(alone.rank_steps(0, steps)):
        parts = [batch for rank in ranks if rank[number].examples for batch in rank[number].batches]
        assert np.sort(np.concatenate(parts)).tolist() == np.sort(step.batches[0]).tolist()


@given(plans, plans, st.integers(1, 3), st.data())
def test_resuming_on_other_ranks_loses_no_example(
    before: GlobalBatches, after: GlobalBatches, epochs: int, data: st.DataObject
) -> None:
    after = dataclasses.replace(after, examples=before.examples, seed=before.seed, lengths=before.lengths)
    total = before.total_steps(epochs)
    stop = data.draw(st.integers(0, total))
    seen: list[list[int]] = [[] for _ in range(epochs)]
    end = BEGINNING
    for rank in range(before.world_size):
        for step in before.rank_steps(rank, stop):
            seen[step.epoch] += np.concatenate(step.batches).tolist() if step.examples else []
            end = step.end
    steps = after.total_steps(epochs, end)
    for rank in range(after.world_size):
        numbers = []
        for step in after.rank_steps(rank, steps, end):
            seen[step.epoch] += np.concatenate(step.batches).tolist() if step.examples else []
            numbers.append(step.step)
        assert numbers == list(range(stop + 1, steps + 1))
    assert [sorted(epoch) for epoch in seen] == [list(range(before.examples))] * epochs
    if after.global_batch == before.global_batch:
        assert steps == total


@pytest.mark.parametrize(("examples", "most_padding", "most_pairs"), [(20_000, 1.02, 0.10), (2_000, 1.06, 0.20)])
def test_grouping_pads_little_and_mixes_batches(examples: int, most_padding: float, most_pairs: float) -> None:
    padding, pairs = costs(plan_of(examples))
    assert 1 <= padding <= most_padding
    assert pairs <= most_pairs


def test_short_and_long_steps_are_mixed() -> None:
    plan = plan_of(1000)
    assert plan.lengths is not None
    first_lengths = plan.lengths[plan.order(0, 16)[0:992:16]]
    assert np.ptp(first_lengths[:20]) > 50


def test_every_rank_has_the_longest_texts_in_its_turn() -> None:
    plan = plan_of(2000, world_size=4)
    assert plan.lengths is not None
    tokens = [
        sum(int(plan.lengths[batch].sum()) for step in plan.rank_steps(rank, 125) for batch in step.batches)
        for rank in range(4)
    ]
    assert max(tokens) / min(tokens) < 1.02


def test_epochs_have_different_orders() -> None:
    plan = GlobalBatches(examples=50, rank_batch=1, world_size=1, accum_steps=1, seed=0)
    assert plan.order(0, 1).tolist() == plan.order(0, 1).tolist() != plan.order(1, 1).tolist()


def test_a_rank_without_examples_has_a_batch() -> None:
    plan = GlobalBatches(examples=2, rank_batch=1, world_size=4, accum_steps=1, seed=0)
    steps = [next(plan.rank_steps(rank, 1)) for rank in range(4)]
    assert sorted(step.examples for step in steps) == [0, 0, 1, 1]
    assert all(len(step.batches) == 1 for step in steps)


@given(st.integers(0, 50), st.integers(1, 6), st.integers(1, 8))
def test_evaluation_uses_each_example_once(examples: int, world_size: int, batch: int) -> None:
    ranks = [eval_batches(examples, rank, world_size, batch) for rank in range(world_size)]
    assert sorted(int(index) for rank in ranks for indices in rank for index in indices) == list(range(examples))


def test_a_rank_slice_is_contiguous() -> None:
    assert [rank_slice(np.arange(7), rank, 3).tolist() for rank in range(3)] == [[0, 1], [2, 3], [4, 5, 6]]


class Numbers:
    in_memory = False
    lengths = None

    def __len__(self) -> int:
        return 10

    def batch(self, indices: Sequence[int] | Indices) -> Batch:
        return {"labels": torch.tensor([int(index) for index in indices])}


@pytest.mark.process
def test_workers_do_not_change_the_order() -> None:
    plan = GlobalBatches(examples=10, rank_batch=3, world_size=1, accum_steps=1, seed=4)
    orders = []
    for workers in (0, 2):
        lists = (indices for step in plan.rank_steps(0, 8) for indices in step.batches)
        orders.append([batch["labels"].tolist() for batch in load_batches(Numbers(), lists, CPU, workers)])
    assert orders[0] == orders[1] == [step.batches[0].tolist() for step in plan.rank_steps(0, 8)]


def test_evaluation_groups_texts_of_similar_length() -> None:
    lengths = np.array([9, 2, 7, 2, 8, 1])
    batches = [eval_batches(6, rank, 2, 2, lengths) for rank in range(2)]
    assert [[lengths[batch].tolist() for batch in own] for own in batches] == [[[1, 2], [8]], [[2, 7], [9]]]
    assert sorted(index for own in batches for batch in own for index in batch) == list(range(6))
