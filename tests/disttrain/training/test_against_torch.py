"""Losses and norms of 20 steps are those of a plain torch loop with the same settings, on one rank and on two."""

from __future__ import annotations

import dataclasses
import functools
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from disttrain.config.recipe import stream_seed
from disttrain.config.train_config import TrainConfig
from disttrain.data.batches import GlobalBatches, RankStep
from disttrain.data.splits import load_splits
from disttrain.environment.rank_env import RankEnv
from disttrain.models.bert import build, encode
from disttrain.run import run
from disttrain.training.loop import TrainingLoop
from disttrain.training.optimizer import make_optimizer
from disttrain.training.precision import LossScaler
from tests.disttrain.ranks import ALONE, die_in, saved_often

if TYPE_CHECKING:
    from tests.disttrain.conftest import RunRanks

STEPS = 20
# The fields of the run, and torch's optimizer and loss with the same meaning.
SETTINGS: dict[str, dict[str, Any]] = {
    "adamw": {},
    "sgd": {"optimizer": "sgd", "lr": 0.05},
    "sgd with momentum and decay": {"optimizer": "sgd", "lr": 0.05, "momentum": 0.9, "weight_decay": 0.1},
    "clipping": {"max_grad_norm": 0.5},
    "clipping of sgd": {"optimizer": "sgd", "lr": 0.1, "max_grad_norm": 0.2},
    "smoothing": {"label_smoothing": 0.2},
    "fp16": {"precision": "fp16"},
    "fp16 and sgd": {"precision": "fp16", "optimizer": "sgd", "lr": 0.05, "momentum": 0.9},
    "fp16 and clipping": {"precision": "fp16", "max_grad_norm": 0.5},
}


def plain_loop(config: TrainConfig, work_dir: Path) -> tuple[list[float], list[float]]:
    """The loss of each step and the norm of its gradients, from torch's own parts on one process."""
    encoded = encode(config, load_splits(config, "text"), ALONE, work_dir)
    torch.manual_seed(stream_seed(config.seed, "weights"))
    model = build(config, encoded).model.train()
    matrices = [weight for weight in model.parameters() if weight.dim() > 1]
    others = [weight for weight in model.parameters() if weight.dim() <= 1]
    groups = [{"params": matrices, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
    optimizer: torch.optim.Optimizer = torch.optim.AdamW(groups, lr=config.lr)
    if config.optimizer == "sgd":
        optimizer = torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum)
    criterion = nn.CrossEntropyLoss(label_smoothing=config.label_smoothing)
    plan = GlobalBatches(len(encoded.train), 8, 1, 1, config.seed, encoded.train.lengths)
    scaler = torch.amp.GradScaler("cpu", enabled=config.precision == "fp16")
    losses, norms = [], []
    for step in plan.rank_steps(0, STEPS):
        batch = encoded.train.batch(step.batches[0])
        with torch.autocast("cpu", torch.float16, enabled=config.precision == "fp16"):
            logits = model(batch)
        loss = criterion(logits.float(), batch["labels"])
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        norms.append(float(nn.utils.clip_grad_norm_(model.parameters(), config.max_grad_norm or 1e9)))
        scaler.step(optimizer)
        scaler.update()
        losses.append(float(loss.detach()))
    return losses, norms


@pytest.mark.process
@pytest.mark.parametrize("name", SETTINGS)
def test_a_run_is_the_plain_loop(name: str, bert_config: TrainConfig, run_ranks: RunRanks, tmp_path: Path) -> None:
    config = dataclasses.replace(
        bert_config, max_steps=STEPS, lr_schedule="constant", warmup_ratio=0.0, max_eval_examples=0, **SETTINGS[name]
    )
    losses, norms = plain_loop(dataclasses.replace(config, per_gpu_batch=8), tmp_path)
    assert abs(losses[-1] - losses[0]) > 1e-3
    precision = 2e-3 if config.precision == "fp16" else 1e-4  # fp16 rounds to 5e-4
    for ranks in (1, 2):
        finished = run_ranks(dataclasses.replace(config, per_gpu_batch=8 // ranks), ranks)
        assert finished.exit_codes == (0,) * ranks
        assert finished.losses() == pytest.approx(losses, rel=precision, abs=precision / 10)
        assert {step.skipped for step in finished.steps(0)} == {False if config.precision == "fp16" else None}
        recorded = [step.grad_norm for step in finished.steps(ranks - 1)]
        if config.max_grad_norm is None:
            assert recorded == [None] * STEPS
        else:
            assert recorded == pytest.approx(norms, rel=10 * precision)
            assert max(norms) > config.max_grad_norm


def test_label_smoothing_counts_in_the_evaluation(
    bert_config: TrainConfig, run_ranks: RunRanks, tmp_path: Path
) -> None:
    """As HF Trainer's label_smoothing_factor does."""
    config = dataclasses.replace(bert_config, max_steps=2, lr=1e-9)
    plain, smoothed = (
        run_ranks(dataclasses.replace(config, label_smoothing=smoothing), 1).summary["eval_loss"]
        for smoothing in (0.0, 0.3)
    )
    encoded = encode(config, load_splits(config, "text"), ALONE, tmp_path)
    assert encoded.eval is not None
    torch.manual_seed(stream_seed(config.seed, "weights"))
    batch = encoded.eval.batch(range(len(encoded.eval)))
    with torch.no_grad():
        logits = build(config, encoded).model.eval()(batch)
    assert plain == pytest.approx(float(cross_entropy(logits, batch["labels"])), rel=1e-4)
    assert smoothed == pytest.approx(float(cross_entropy(logits, batch["labels"], label_smoothing=0.3)), rel=1e-4)


@pytest.mark.parametrize(
    ("labels", "predicted"),
    [([0, 1, 2, 0], [0, 1, 1, 0]), ([0, 0, 0], [0, 0, 0]), ([0, 1], [1, 0]), ([3, 3, 1, 0, 0], [3, 1, 1, 2, 0])],
)
def test_macro_f1_is_that_of_scikit_learn(labels: list[int], predicted: list[int]) -> None:
    from disttrain.training.evaluation import _macro_f1

    counts = [
        [sum(a == b == number for a, b in zip(labels, predicted, strict=True)) for number in range(5)],
        [predicted.count(number) for number in range(5)],
        [labels.count(number) for number in range(5)],
    ]
    scores = []
    for number in sorted({*labels, *predicted}):
        right = counts[0][number]
        precision, recall = right / max(1, counts[1][number]), right / max(1, counts[2][number])
        scores.append(2 * precision * recall / (precision + recall) if right else 0.0)
    assert _macro_f1(*counts) == pytest.approx(sum(scores) / len(scores))


def overflow_in(steps: set[int], config: TrainConfig, env: RankEnv, output_dir: Path) -> None:
    """Runs a rank; in these steps its loss, and with it all gradients, are infinite."""
    add_gradients = TrainingLoop._add_gradients

    def add(loop: TrainingLoop, step: RankStep, batches: Any) -> Any:
        loss = add_gradients(loop, step, batches)
        if step.step in steps:
            for weight in loop._model.parameters():
                weight.grad.fill_(torch.inf)  # type: ignore[union-attr]
            loss = loss * torch.inf
        return loss

    TrainingLoop._add_gradients = add  # type: ignore[method-assign, assignment]
    run(config, env, output_dir)


@pytest.mark.process
@pytest.mark.parametrize("max_grad_norm", [None, 1.0])
def test_steps_that_overflow_are_skipped(
    max_grad_norm: float | None, bert_config: TrainConfig, run_ranks: RunRanks
) -> None:
    config = dataclasses.replace(bert_config, precision="fp16", max_steps=6, max_grad_norm=max_grad_norm)
    finished = run_ranks(config, 2, target=functools.partial(overflow_in, {2, 3}))
    assert finished.exit_codes == (0, 0)
    assert [step.skipped for step in finished.steps(0)] == [False, True, True, False, False, False]
    assert [step.loss is None for step in finished.steps(0)] == [False, True, True, False, False, False]


@pytest.mark.process
def test_a_resumed_fp16_run_has_its_scale(bert_config: TrainConfig, run_ranks: RunRanks) -> None:
    config = dataclasses.replace(saved_often(bert_config), precision="fp16")
    uninterrupted = run_ranks(config, 2)
    killed = run_ranks(config, 2, target=functools.partial(die_in, 11, 1))
    resumed = run_ranks(config, 2, killed.output_dir)
    assert resumed.exit_codes == (0, 0)
    assert resumed.losses() == uninterrupted.losses()


def test_a_scale_is_saved() -> None:
    scaler = LossScaler("fp16", torch.device("cpu"))
    weight = nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([weight], lr=1.0, fused=True)
    scaler.scaled((weight * torch.inf).sum()).backward()  # type: ignore[no-untyped-call]
    skipped = scaler.step(optimizer)
    assert skipped is not None
    assert skipped.item() is True
    assert weight.tolist() == [1, 1]
    other = LossScaler("fp16", torch.device("cpu"))
    other.load(scaler.state())
    assert other.state()["scale"] == 2.0**15
    plain = LossScaler("fp32", torch.device("cpu"))
    plain.load(scaler.state())
    assert plain.state() == {}


def test_a_skipped_first_step_leaves_no_momentum() -> None:
    """torch's fused SGD would take uninitialised memory for the momentum of a first step that was skipped."""
    model = nn.Linear(1000, 10)
    optimizer = make_optimizer(model, TrainConfig(model="bert", optimizer="sgd", momentum=0.9, weight_decay=0.0))
    scaler = LossScaler("fp16", torch.device("cpu"))
    for value in (torch.inf, 1.0):
        scaler.scaled(model.weight.sum() * value + model.bias.sum() * value).backward()  # type: ignore[no-untyped-call]
        scaler.step(optimizer)
        optimizer.zero_grad()
    buffers = [optimizer.state[weight]["momentum_buffer"] for weight in model.parameters()]
    assert all(torch.equal(buffer, torch.ones_like(buffer)) for buffer in buffers)


def test_a_gradient_that_comes_later_has_momentum() -> None:
    """As of a layer that is dropped in the first step."""
    model = nn.Linear(3, 2)
    optimizer = make_optimizer(model, TrainConfig(model="bert", optimizer="sgd", momentum=0.9))
    model.weight.sum().backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    model.bias.sum().backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    assert optimizer.state[model.bias]["momentum_buffer"].tolist() == [1, 1]


@pytest.mark.process
def test_a_run_of_skipped_steps_alone_fails(bert_config: TrainConfig, run_ranks: RunRanks) -> None:
    """A loss that is no number at every scale is no matter of the scale."""
    config = dataclasses.replace(bert_config, precision="fp16", max_eval_examples=0)
    for steps, overflowing, message in (
        (4, {1, 2, 3, 4}, "the last 4 steps have no finite loss"),
        (10, {8, 9, 10}, "the last 3 steps have no finite loss"),
        (40, set(range(2, 41)), "the last 18 steps up to 19 have no finite loss"),
    ):
        finished = run_ranks(
            dataclasses.replace(config, max_steps=steps), 1, target=functools.partial(overflow_in, overflowing)
        )
        assert finished.exit_codes == (1,)
        failure = json.loads((finished.output_dir / "failure-rank00000.json").read_text())
        assert failure["message"].startswith(message)
    ends_well = run_ranks(dataclasses.replace(config, max_steps=6), 1, target=functools.partial(overflow_in, {5, 6}))
    assert ends_well.exit_codes == (0,)
