"""DDP on real gloo ranks: losses and gradients do not depend on the number of ranks, and evaluation is exact."""

from __future__ import annotations

import dataclasses
import json
import os
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn

from disttrain.config.train_config import TrainConfig
from disttrain.data.batches import BEGINNING, RankStep
from disttrain.environment.rank_env import RankEnv
from disttrain.records.record_files import metrics_name, read_records
from disttrain.records.record_types import EvalRecord
from disttrain.run import run
from disttrain.training.evaluation import eval_due
from disttrain.training.optimizer import lr_factor, make_optimizer

if TYPE_CHECKING:
    from tests.disttrain.conftest import Finished, RunRanks

# The tolerance for another order of summation over 20 steps; the measured difference is 6e-7.
SAME: dict[str, Any] = {"rel": 1e-5, "abs": 1e-6}


def evals(finished: Finished, rank: int) -> list[EvalRecord]:
    records = read_records(finished.output_dir / metrics_name(rank))
    return [record for record in records if isinstance(record, EvalRecord)]


@pytest.mark.parametrize("family", ["bert", "vit"])
def test_one_and_four_ranks_train_alike(family: str, request: pytest.FixtureRequest, run_ranks: RunRanks) -> None:
    """20 steps over 30 examples reach the third epoch; the last batch of an epoch has examples for two ranks only."""
    config: TrainConfig = request.getfixturevalue(f"{family}_config")
    one = run_ranks(dataclasses.replace(config, per_gpu_batch=4), 1)
    four = run_ranks(dataclasses.replace(config, per_gpu_batch=1), 4)
    assert one.exit_codes + four.exit_codes == (0,) * 5
    assert len(one.losses()) == 20
    assert four.losses() == pytest.approx(one.losses(), **SAME)
    assert [sum(step.examples for step in steps) for steps in zip(*map(four.steps, range(4)), strict=True)] == [
        step.examples for step in one.steps(0)
    ]
    assert [step.examples for step in one.steps(0)].count(2) == 2
    assert [step.lr for step in four.steps(3)] == [step.lr for step in one.steps(0)]
    # The weights after 20 steps are the same too. Four ranks cannot divide the 11 evaluation examples evenly.
    assert evals(one, 0)[-1].examples == evals(four, 3)[-1].examples == 11
    for name in ("loss", "accuracy"):
        single, first, last = (
            [getattr(record, name) for record in evals(run, rank)] for run, rank in ((one, 0), (four, 0), (four, 3))
        )
        assert first == last == pytest.approx(single, **SAME)
    assert four.summary["train_loss"] == pytest.approx(one.summary["train_loss"], **SAME)
    assert four.summary["eval_loss"] == pytest.approx(one.summary["eval_loss"], **SAME)
    # The gradients must change the losses: otherwise the losses would agree even with wrong gradients.
    frozen = run_ranks(dataclasses.replace(config, per_gpu_batch=4, lr=1e-12), 1)
    assert max(abs(a - b) for a, b in zip(frozen.losses(), one.losses(), strict=True)) > 0.05


@pytest.mark.parametrize("family", ["bert", "vit"])
def test_gradients_do_not_depend_on_ranks(family: str, request: pytest.FixtureRequest, run_ranks: RunRanks) -> None:
    config: TrainConfig = request.getfixturevalue(f"{family}_config")
    config = dataclasses.replace(config, per_gpu_batch=None, global_batch=4, max_steps=1, max_eval_examples=0)
    (single,), two, four = (
        gradients(run_ranks(config, ranks, target=run_and_save_gradients), ranks) for ranks in (1, 2, 4)
    )
    assert max(float(gradient.abs().max()) for gradient in single) > 1e-3
    for rank in (*two, *four):
        for gradient, expected in zip(rank, single, strict=True):
            torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-6)


def gradients(finished: Finished, world_size: int) -> list[list[torch.Tensor]]:
    return [torch.load(finished.output_dir / f"gradients-{rank}.pt") for rank in range(world_size)]


def run_and_save_gradients(config: TrainConfig, env: RankEnv, output_dir: Path) -> None:
    """Runs a rank, and saves the gradients that the optimizer step uses."""
    update = torch.optim.AdamW.step

    def step(optimizer: torch.optim.AdamW) -> None:
        step_gradients = [parameter.grad for group in optimizer.param_groups for parameter in group["params"]]
        torch.save(step_gradients, output_dir / f"gradients-{env.rank}.pt")
        update(optimizer)

    torch.optim.AdamW.step = step  # type: ignore[method-assign, assignment]
    run(config, env, output_dir)


def test_accumulation_equals_one_large_batch(bert_config: TrainConfig, run_ranks: RunRanks) -> None:
    config = dataclasses.replace(bert_config, max_steps=None, epochs=2, max_eval_examples=0)
    one_batch = run_ranks(dataclasses.replace(config, per_gpu_batch=8), 1)
    accumulated = run_ranks(dataclasses.replace(config, per_gpu_batch=None, global_batch=8, grad_accum_steps=2), 2)
    assert one_batch.exit_codes + accumulated.exit_codes == (0,) * 3
    assert len(one_batch.losses()) == 8
    assert accumulated.losses() == pytest.approx(one_batch.losses(), **SAME)
    assert accumulated.summary["eval_accuracy"] is None


def test_evaluates_by_epoch_or_interval() -> None:
    def due(steps: int, eval_every: int | None) -> list[int]:
        rank_steps = [RankStep(number, 0, number % 4 == 0, (), 1, 1, BEGINNING) for number in range(1, steps + 1)]
        return [step.step for step in rank_steps if eval_due(step, steps, eval_every)]

    assert due(10, None) == [4, 8, 10]
    assert due(10, 3) == [3, 6, 9, 10]


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_learning_rate_warms_up_and_decays(schedule: str) -> None:
    factors = [lr_factor(done, 40, 10, schedule) for done in range(40)]
    assert factors[0] == pytest.approx(0.1)
    assert max(factors) == factors[9] == 1.0
    assert all(0 < factor <= 1 for factor in factors)
    assert all(later <= earlier for earlier, later in pairwise(factors[9:]))
    assert factors[-1] == 1.0 if schedule == "constant" else factors[-1] < 0.05


@pytest.mark.parametrize("warmup", [0, 1, 40])
def test_learning_rate_with_extreme_warm_ups(warmup: int) -> None:
    assert all(0 < lr_factor(done, 40, warmup, "linear") <= 1 for done in range(40))


def test_biases_and_norms_do_not_decay() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3))
    decayed, constant = make_optimizer(model, TrainConfig(model="bert", weight_decay=0.1)).param_groups
    assert [parameter.shape for parameter in decayed["params"]] == [torch.Size([3, 3])]
    assert decayed["weight_decay"] == 0.1
    assert len(constant["params"]) == 3
    assert constant["weight_decay"] == 0.0


def test_bf16_gradients_train_nearly_alike(bert_config: TrainConfig, run_ranks: RunRanks) -> None:
    plain = run_ranks(bert_config, 2)
    rounded = run_ranks(dataclasses.replace(bert_config, grad_compression="bf16"), 2)
    assert rounded.losses() != plain.losses()
    assert rounded.losses() == pytest.approx(plain.losses(), rel=0.1)


def test_deterministic_kernels_change_no_cpu_loss(vit_config: TrainConfig, run_ranks: RunRanks) -> None:
    config = dataclasses.replace(vit_config, max_steps=4)
    assert run_ranks(dataclasses.replace(config, deterministic=True), 2).losses() == run_ranks(config, 2).losses()


@pytest.mark.parametrize("family", ["bert", "vit"])
def test_shared_memory_changes_no_loss(family: str, request: pytest.FixtureRequest, run_ranks: RunRanks) -> None:
    """With detailed timing gloo exchanges the gradients; without it two ranks on one machine share memory."""
    config: TrainConfig = request.getfixturevalue(f"{family}_config")
    config = dataclasses.replace(config, max_eval_examples=0, grad_accum_steps=2, per_gpu_batch=2)
    shared, gloo = (run_ranks(dataclasses.replace(config, detailed_timing=timed), 2) for timed in (False, True))
    assert shared.exit_codes + gloo.exit_codes == (0,) * 4
    assert (shared.summary["transport"], gloo.summary["transport"]) == ("shared memory", "one host")
    assert shared.losses() == gloo.losses()


def test_ranks_that_cannot_share_memory_say_so(bert_config: TrainConfig, run_ranks: RunRanks) -> None:
    config = dataclasses.replace(bert_config, max_steps=2, max_eval_examples=0)
    finished = run_ranks(config, 2, target=run_without_shared_memory)
    assert finished.exit_codes == (0, 0)
    assert finished.summary["transport"] == "one host"
    assert any("cannot share memory" in notice for notice in finished.summary["notices"])


def run_without_shared_memory(config: TrainConfig, env: RankEnv, output_dir: Path) -> None:
    del os.memfd_create  # as in a Python that was built for an old C library
    run(config, env, output_dir)


def test_a_loss_that_is_not_finite_ends_the_run(bert_config: TrainConfig, run_ranks: RunRanks) -> None:
    config = dataclasses.replace(bert_config, lr=1e30, warmup_ratio=0.0, max_steps=6, max_eval_examples=0)
    finished = run_ranks(config, 2)
    assert 1 in finished.exit_codes
    messages = [json.loads(path.read_text())["message"] for path in finished.output_dir.glob("failure-rank*.json")]
    assert any(message.startswith("the loss of step 2 is nan (") for message in messages)
    assert not (finished.output_dir / "summary.json").exists()
    assert [step.loss is None for step in finished.steps(0)] == [False, *[True] * 5], "the records are written"
    goes_on = run_ranks(dataclasses.replace(config, stop_on_non_finite=False), 1)
    assert (goes_on.exit_codes, goes_on.summary["steps"]) == ((0,), 6)


def test_a_rank_without_examples_prints_no_loss(
    bert_config: TrainConfig, run_ranks: RunRanks, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Two rows on three ranks: one of them has none in each step."""
    (tmp_path / "train.csv").write_text("text,label\na dull film,0\na bright film,1\n")
    config = dataclasses.replace(
        bert_config, dataset=str(tmp_path / "train.csv"), per_gpu_batch=1, max_steps=3, max_eval_examples=0
    )
    finished = run_ranks(config, 3)
    assert finished.exit_codes == (0, 0, 0)
    assert sorted(step.examples for rank in range(3) for step in finished.steps(rank)) == [0] * 3 + [1] * 6
    assert "nan" not in capfd.readouterr().out
