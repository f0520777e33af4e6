"""The model of the best evaluation is kept over kills and other numbers of ranks, and is the one that is saved."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from disttrain.analysis.best_evaluation import best_evaluation
from disttrain.config.train_config import TrainConfig
from disttrain.errors import UserError
from disttrain.records.record_files import metrics_name, read_records
from disttrain.records.record_types import EvalRecord
from tests.disttrain.models.test_text_kinds import loss_of_saved, rows_of
from tests.disttrain.ranks import STEPS, die_in, saved_often


def record(step: int, loss: float | None) -> EvalRecord:
    return EvalRecord(step=step, loss=loss, accuracy=0.5, examples=4, elapsed_s=1.0)


def test_the_lowest_loss_is_the_best_and_of_equal_ones_the_first() -> None:
    losses = [math.nan, None, 0.7, math.nan, 0.5, 0.5, 0.6]
    best = best_evaluation(record(step, loss) for step, loss in enumerate(losses, start=1))
    assert best == record(5, 0.5)
    assert best_evaluation([record(1, None), record(2, math.inf)]) is None


@pytest.fixture
def overfitting(bert_config: TrainConfig, tmp_path: Path) -> TrainConfig:
    """A run whose evaluation loss rises after the first evaluation: the classes of its evaluation split are flipped."""
    folder = tmp_path / "flipped"
    folder.mkdir()
    for name, rows, classes in (("train", 30, (0, 1)), ("dev", 11, (1, 0))):
        lines = [f"{('bad', 'good')[row % 2]}\t{classes[row % 2]}" for row in range(rows)]
        (folder / f"{name}.tsv").write_text("\n".join(["sentence\tlabel", *lines]) + "\n")
    config = dataclasses.replace(saved_often(bert_config), dataset=str(folder))
    return dataclasses.replace(config, keep_best_model=True, eval_every=6)


def evaluations(folder: Path) -> dict[int, float | None]:
    records = read_records(folder / metrics_name(0))
    return {entry.step: entry.loss for entry in records if isinstance(entry, EvalRecord)}


def saved_weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model" / "model.safetensors")


@pytest.mark.process
def test_a_killed_run_saves_its_best_model(overfitting: TrainConfig, run_ranks: Callable[..., Any]) -> None:
    whole = run_ranks(overfitting, 2)
    losses = evaluations(whole.output_dir)
    assert list(losses) == [6, 12, 18, 20]
    assert min(losses, key=lambda step: losses[step] or math.inf) == 6
    best = {name: whole.summary[f"best_eval_{name}"] for name in ("step", "loss")}
    assert best == {"step": 6, "loss": losses[6]}
    assert whole.summary["eval_loss"] == losses[STEPS] > best["loss"] + 0.1
    assert whole.summary["notices"][-1].startswith("the saved model is that of step 6: its evaluation loss of ")
    rows = rows_of(Path(str(overfitting.dataset)) / "dev.tsv")
    assert loss_of_saved(whole.output_dir / "model", rows) == pytest.approx(best["loss"], rel=1e-4)

    killed = run_ranks(overfitting, 2, target=functools.partial(die_in, 17, 1))
    assert killed.exit_codes[1] == -signal.SIGKILL
    resumed = run_ranks(overfitting, 2, killed.output_dir)
    assert resumed.exit_codes == (0, 0)
    assert any("resumes after step" in notice for notice in resumed.summary["notices"])
    assert {name: resumed.summary[f"best_eval_{name}"] for name in best} == best
    expected, actual = saved_weights(whole.output_dir), saved_weights(resumed.output_dir)
    assert all(torch.equal(actual[name], value) for name, value in expected.items())


@pytest.mark.process
def test_another_number_of_ranks_keeps_the_best_model(overfitting: TrainConfig, run_ranks: Callable[..., Any]) -> None:
    """The records of earlier steps are dropped, and the best evaluation is not."""
    config = dataclasses.replace(overfitting, per_gpu_batch=None, global_batch=4)
    killed = run_ranks(config, 2, target=functools.partial(die_in, 17, 1))
    first = evaluations(killed.output_dir)
    resumed = run_ranks(config, 1, killed.output_dir)
    assert resumed.exit_codes == (0,)
    assert list(evaluations(resumed.output_dir)) == [6, 18, 20], "12 is before the checkpoint, and not the best"
    assert (resumed.summary["best_eval_step"], resumed.summary["best_eval_loss"]) == (6, first[6])
    rows = rows_of(Path(str(overfitting.dataset)) / "dev.tsv")
    assert loss_of_saved(resumed.output_dir / "model", rows) == pytest.approx(first[6], rel=1e-4)


def test_without_it_the_last_model_is_saved(overfitting: TrainConfig, run_ranks: Callable[..., Any]) -> None:
    finished = run_ranks(dataclasses.replace(overfitting, keep_best_model=False), 1)
    rows = rows_of(Path(str(overfitting.dataset)) / "dev.tsv")
    assert loss_of_saved(finished.output_dir / "model", rows) == pytest.approx(finished.summary["eval_loss"], rel=1e-4)
    assert finished.summary["best_eval_step"] == 6
    assert not any("saved model" in notice for notice in finished.summary["notices"])


def test_a_family_that_is_not_saved_is_refused(overfitting: TrainConfig, run_ranks: Callable[..., Any]) -> None:
    config = dataclasses.replace(
        overfitting, model="tests.third_model.bag_of_words:BagOfWords", architecture=None, checkpoint_every=None
    )
    finished = run_ranks(config, 1)
    failure = json.loads((finished.output_dir / "failure-rank00000.json").read_text())
    assert "cannot be saved, so keep_best_model has no effect" in failure["message"]
    assert failure["user_error"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"save_model": False}, "keep_best_model is true, but save_model is false"),
        ({"max_eval_examples": 0}, "keep_best_model needs evaluations, but max_eval_examples is 0"),
    ],
)
def test_fields_that_exclude_it_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        TrainConfig(model="bert", keep_best_model=True, **fields)
