"""Ranks on one machine compute the mean of tensors in memory that they share."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from disttrain.config.train_config import TrainConfig
from disttrain.distributed import shared_memory
from disttrain.distributed.group import Group, process_group
from disttrain.distributed.shared_memory import may_share, open_shared_mean
from disttrain.environment.rank_env import RankEnv
from tests.disttrain.conftest import RunRanks
from tests.disttrain.ranks import ALONE

ROUNDS = 3
SIZES = ((7, torch.float32), (3, torch.float64), (1000, torch.float32), (5, torch.bfloat16))


def numbers(rank: int, turn: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(10 * rank + turn)
    return [torch.randn(size, generator=generator).to(dtype) for size, dtype in SIZES]


def save_means(config: TrainConfig, env: RankEnv, output_dir: Path) -> None:
    with process_group(env, "cpu") as group:
        shared = open_shared_mean(group, [values.nbytes for values in numbers(0, 0)])
        assert shared is not None
        means = []
        for turn in range(ROUNDS):
            values = numbers(env.rank, turn)
            for part in values:
                shared.add(part)
            shared.finish()
            means.append(values)
        output_dir.mkdir(exist_ok=True)
        torch.save(means, output_dir / f"means-{env.rank}.pt")


@pytest.mark.parametrize("ranks", [2, 3])
def test_all_ranks_get_the_same_mean(ranks: int, bert_config: TrainConfig, run_ranks: RunRanks) -> None:
    finished = run_ranks(bert_config, ranks, target=save_means)
    assert finished.exit_codes == (0,) * ranks
    by_rank = [torch.load(finished.output_dir / f"means-{rank}.pt") for rank in range(ranks)]
    for turn in range(ROUNDS):
        parts = zip(*(numbers(rank, turn) for rank in range(ranks)), strict=True)
        for number, of_ranks in enumerate(parts):
            expected = torch.stack(of_ranks).double().mean(dim=0)
            mean = by_rank[0][turn][number]
            torch.testing.assert_close(mean.double(), expected, rtol=0, atol=0.02 if number == 3 else 1e-6)
            assert all(torch.equal(rank[turn][number], mean) for rank in by_rank)


def rank_1_cannot_open(config: TrainConfig, env: RankEnv, output_dir: Path) -> None:
    if env.rank == 1:
        shared_memory._map = lambda *_: None
    expect_no_memory(env)


def rank_0_cannot_make(config: TrainConfig, env: RankEnv, output_dir: Path) -> None:
    def refuse(*_: object) -> int:
        raise OSError("too many open files")

    os.memfd_create = refuse  # type: ignore[assignment]
    expect_no_memory(env)


def rank_0_cannot_fill(config: TrainConfig, env: RankEnv, output_dir: Path) -> None:
    def refuse(*_: object) -> None:
        raise OSError("file too large")

    os.truncate = refuse  # type: ignore[assignment]
    expect_no_memory(env)


def expect_no_memory(env: RankEnv) -> None:
    with process_group(env, "cpu") as group:
        assert may_share(group)
        assert open_shared_mean(group, [8]) is None


@pytest.mark.parametrize("target", [rank_1_cannot_open, rank_0_cannot_make, rank_0_cannot_fill])
def test_all_ranks_use_gloo_if_one_cannot_share(
    target: Callable[..., None], bert_config: TrainConfig, run_ranks: RunRanks
) -> None:
    assert run_ranks(bert_config, 2, target=target).exit_codes == (0, 0)


def test_memory_of_another_process_is_not_used() -> None:
    made = os.memfd_create("other")
    os.truncate(made, 64)
    path = f"/proc/{os.getpid()}/fd/{made}"
    os.pwrite(made, b"a" * 16, 0)
    assert shared_memory._map(path, b"b" * 16, 64) is None
    assert shared_memory._map(path, b"a" * 16, 64) is not None
    os.close(made)
    assert shared_memory._map("/proc/self/fd/none", b"a" * 16, 64) is None


@pytest.mark.parametrize(
    "group",
    [
        pytest.param(lambda env, cpu: ALONE, id="one rank"),
        pytest.param(lambda env, cpu: Group(env, cpu, "gloo", ("n1", "n2"), False), id="two machines"),
        pytest.param(
            lambda env, cpu: Group(env, cpu, "gloo", ("n", "n"), False, machines=("n 1", "n 2")), id="equal host names"
        ),
        pytest.param(lambda env, cpu: Group(env, cpu, "nccl", ("n1", "n1"), False), id="NCCL"),
        pytest.param(lambda env, cpu: Group(env, cpu, "gloo", ("n1", "n1"), True), id="a shared GPU"),
    ],
)
def test_memory_is_shared_on_one_machine_only(group: Callable[..., Group]) -> None:
    assert not may_share(group(RankEnv(world_size=2), torch.device("cpu")))


@pytest.mark.parametrize(("ranks", "shares"), [(2, True), (4, True), (5, False)])
def test_few_ranks_share_memory(ranks: int, shares: bool) -> None:
    group = Group(RankEnv(world_size=ranks), torch.device("cpu"), "gloo", ("n1",) * ranks, False)
    assert may_share(group) == shares
