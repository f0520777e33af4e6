"""The check at the start of a run: slow ranks, wrong results, and a run that is otherwise unchanged."""

from __future__ import annotations

import dataclasses
import json
import random
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from disttrain.config.train_config import TrainConfig
from disttrain.distributed.group import Group, process_group
from disttrain.environment.rank_env import RankEnv
from disttrain.errors import BrokenNode
from disttrain.measure import start_check
from disttrain.measure.start_check import (
    ALL_REDUCE,
    PRODUCT,
    ROUNDS,
    Multiply,
    RankCheck,
    check_start,
    known_product,
    slow_notices,
    wrong_result_message,
)
from disttrain.records.record_files import failure_name, from_json, metrics_name, read_records, write_failure
from disttrain.records.record_types import CheckRecord, StartRecord
from disttrain.records.summary_types import Failure
from disttrain.run import main

if TYPE_CHECKING:
    from tests.disttrain.conftest import RunRanks

HOSTS = ("node1", "node2", "node3", "node4")


def rank_checks(*product_ms: list[float]) -> list[RankCheck]:
    return [RankCheck(f"rank {rank} on {HOSTS[rank]}", tuple(times), ()) for rank, times in enumerate(product_ms)]


def slow_multiply(left: Tensor, right: Tensor, out: Tensor) -> None:
    for _ in range(4):
        torch.mm(left, right, out=out)


def wrong_multiply(left: Tensor, right: Tensor, out: Tensor) -> None:
    torch.mm(left, right, out=out)
    out[7, 11] += 1


class WrongSum(Group):
    def sum(self, values: Tensor) -> Tensor:
        super().sum(values)
        values[-1] += 1
        return values


def check(
    config: TrainConfig,
    env: RankEnv,
    output_dir: Path,
    multiply: Multiply = torch.mm,
    group_type: type[Group] = Group,
) -> None:
    """A rank that runs only the check; rank 1 uses the given `multiply` and `group_type`."""
    output_dir.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    with process_group(env, config.device) as opened:
        group = opened
        if env.rank == 1:
            group = group_type(**{field.name: getattr(opened, field.name) for field in dataclasses.fields(opened)})
        try:
            checked = check_start(config, group, multiply if env.rank == 1 else torch.mm)
        except BrokenNode as error:
            write_failure(output_dir, env.rank, error)
            group.barrier()
            return
    result = {"notices": checked.notices, "record": dataclasses.asdict(checked.records[0])}
    (output_dir / f"{env.rank}.json").write_text(json.dumps(result))


def test_every_rank_names_the_slow_rank(run_ranks: RunRanks) -> None:
    finished = run_ranks(TrainConfig(model="bert", device="cpu"), 2, target=partial(check, multiply=slow_multiply))
    assert finished.exit_codes == (0, 0)
    results = [json.loads((finished.output_dir / f"{rank}.json").read_text()) for rank in range(2)]
    assert results[0]["notices"] == results[1]["notices"]
    (notice,) = results[0]["notices"]
    assert notice.startswith("rank 1 on ")
    assert " is slow at the start: its matrix product takes " in notice
    records = [from_json(CheckRecord, result["record"]) for result in results]
    assert [record.slowest_rank for record in records] == [1, 1]
    assert records[0].all_reduce_ms == records[1].all_reduce_ms
    assert records[0].best_gflop_per_s >= records[0].gflop_per_s > 0


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ({"multiply": wrong_multiply}, "a matrix product of known values has a wrong result on rank 1 on "),
        ({"group_type": WrongSum}, "an all-reduce of known values has a wrong result on rank 1 on "),
    ],
)
def test_every_rank_refuses_a_wrong_result(fault: dict[str, Any], message: str, run_ranks: RunRanks) -> None:
    config = TrainConfig(model="bert", device="cpu", start_check_s=0.1)
    finished = run_ranks(config, 2, target=partial(check, **fault))
    failures = [
        from_json(Failure, json.loads((finished.output_dir / failure_name(rank)).read_text())) for rank in range(2)
    ]
    assert failures[0].message == failures[1].message
    assert failures[0].message.startswith(message)
    assert "\n" not in failures[0].message
    assert not failures[0].user_error


def test_a_wrong_product_is_reported_first() -> None:
    checks = [dataclasses.replace(check, wrong=(ALL_REDUCE,)) for check in rank_checks([1.0], [1.0])]
    message = wrong_result_message(checks)
    assert message is not None
    assert "all-reduce of known values has a wrong result on rank 0 on node1, rank 1 on node2" in message
    checks[1] = dataclasses.replace(checks[1], wrong=(PRODUCT, ALL_REDUCE))
    assert wrong_result_message(checks) == (
        "a matrix product of known values has a wrong result on rank 1 on node2: exclude that node"
    )
    assert wrong_result_message(rank_checks([1.0], [9.0])) is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [16, 64, 512])
def test_the_known_product_is_exact(size: int, dtype: torch.dtype) -> None:
    left, right, product = known_product(size, dtype, torch.device("cpu"))
    assert torch.equal(torch.mm(left, right), product)
    assert torch.equal(torch.mm(left.double(), right.double()), product.double())
    # Every partial sum is an integer up to 256, which bf16 represents exactly.
    partial = torch.cumsum(left.double()[:3, :, None] * right.double()[None, :, :5], dim=1)
    assert partial.abs().max() <= 256


@given(st.integers(0, 10**6), st.integers(2, 4), st.floats(1.8, 5.0), st.integers(0, 3))
def test_only_a_slow_rank_is_named(seed: int, ranks: int, factor: float, slow_rank: int) -> None:
    """With noise as measured: each round varies by 5 %, and one round of one rank takes 6 times as long."""
    rng, slow_rank = random.Random(seed), slow_rank % ranks
    times = [[4.0 * rng.uniform(0.95, 1.05) for _ in range(ROUNDS)] for _ in range(ranks)]
    times[rng.randrange(ranks)][rng.randrange(ROUNDS)] *= 6
    assert slow_notices(rank_checks(*times), HOSTS) == ()
    times[slow_rank] = [factor * time_ms for time_ms in times[slow_rank]]
    (notice,) = slow_notices(rank_checks(*times), HOSTS)
    assert notice.startswith(f"rank {slow_rank} on {HOSTS[slow_rank]} is slow at the start: its matrix product takes ")


def test_an_occasionally_slow_rank_is_not_named() -> None:
    times = [[4.0] * ROUNDS, [4.0] * 3 + [12.0] * 5]
    assert slow_notices(rank_checks(*times), HOSTS) == ()


def test_one_rank_is_measured_alone() -> None:
    group = Group(RankEnv(), torch.device("cpu"), None, ("host1",), False)
    torch.manual_seed(3)
    before = torch.get_rng_state()
    checked = check_start(TrainConfig(model="bert", start_check_s=0.05), group)
    assert torch.equal(torch.get_rng_state(), before)
    (record,) = checked.records
    assert (record.slowest_rank, record.all_reduce_ms, record.bus_gb_per_s) == (None, None, None)
    assert record.gflop_per_s > 0
    assert checked.notices == ()
    with pytest.raises(BrokenNode, match="on rank 0 on host1: exclude that node"):
        check_start(TrainConfig(model="bert", start_check_s=0.05), group, wrong_multiply)
    assert check_start(TrainConfig(model="bert", start_check_s=0), group).records == ()


def test_the_check_does_not_change_training(bert_config: TrainConfig, run_ranks: RunRanks) -> None:
    config = dataclasses.replace(bert_config, max_steps=4)
    without = run_ranks(config, 2)
    finished = run_ranks(dataclasses.replace(config, start_check_s=0.1), 2)
    assert finished.losses() == without.losses()
    for rank in range(2):
        start, checked, *_ = read_records(finished.output_dir / metrics_name(rank))
        assert isinstance(start, StartRecord)
        assert isinstance(checked, CheckRecord)
        assert checked.all_reduce_ms is not None
        assert checked.elapsed_s > 0


def test_a_wrong_result_ends_with_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(start_check.check_start, "__defaults__", (wrong_multiply,))
    with pytest.raises(SystemExit) as ended:
        main("bert", ["--device=cpu", f"--dataset={tmp_path}", f"--output_dir={tmp_path}", "--start_check_s=0.05"])
    assert ended.value.code == 1
    stderr = capsys.readouterr().err
    assert stderr.startswith("error: a matrix product of known values has a wrong result on rank 0 on ")
    assert stderr.count("\n") == 1
