"""The saved model, opened in another process by transformers only, gives the accuracy that the run recorded."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    ViTForImageClassification,
    ViTImageProcessor,
)

from disttrain.config.train_config import TrainConfig
from disttrain.environment.rank_env import RankEnv
from disttrain.run import run

# These programs do not import this package.
OPEN_BERT = """
import csv, sys, torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer
model = AutoModelForSequenceClassification.from_pretrained(sys.argv[1]).eval()
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
correct = []
for row in csv.DictReader(open(sys.argv[2]), delimiter="\\t", quoting=csv.QUOTE_NONE):
    with torch.no_grad():
        logits = model(**tokenizer(row["sentence"], return_tensors="pt", truncation=True, max_length=128)).logits
    correct.append(model.config.id2label[int(logits.argmax())] == row["label"])
print(sum(correct) / len(correct))
"""
OPEN_VIT = """
import sys, torch
from datasets import load_dataset
from transformers import ViTForImageClassification, ViTImageProcessor
model = ViTForImageClassification.from_pretrained(sys.argv[1]).eval()
processor = ViTImageProcessor.from_pretrained(sys.argv[1])
rows = load_dataset("parquet", data_files=sys.argv[2], split="train")
names = rows.features["label"].names
correct = []
for row in rows:
    with torch.no_grad():
        logits = model(**processor(row["image"].convert("RGB"), return_tensors="pt")).logits
    correct.append(model.config.id2label[int(logits.argmax())] == names[row["label"]])
print(sum(correct) / len(correct))
"""


def opened(program: str, folder: Path, data: Path) -> float:
    done = subprocess.run(
        [sys.executable, "-c", program, str(folder), str(data)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return float(done.stdout)


def test_a_saved_bert_has_its_accuracy(bert_config: TrainConfig, run_ranks: Callable[..., Any]) -> None:
    finished = run_ranks(dataclasses.replace(bert_config, max_steps=10), 2)
    assert bert_config.dataset is not None
    (data,) = Path(bert_config.dataset).glob("dev.tsv")
    assert opened(OPEN_BERT, finished.output_dir / "model", data) == finished.summary["eval_accuracy"]


def test_a_saved_vit_has_its_accuracy(vit_config: TrainConfig, run_ranks: Callable[..., Any], repository: Path) -> None:
    folder = repository / "sweeps" / "data" / "cifar10"
    config = dataclasses.replace(vit_config, dataset=str(folder), max_train_examples=64, max_steps=10, image_size=32)
    finished = run_ranks(config, 2)
    # One of 300 may differ: the image processor resizes and rescales in another order of float operations.
    assert opened(OPEN_VIT, finished.output_dir / "model", folder / "test.parquet") == pytest.approx(
        finished.summary["eval_accuracy"], abs=0.01
    )


@pytest.mark.parametrize("pretrained", [True, False])
def test_class_names_are_saved(
    pretrained: bool,
    minilm: str,
    bert_config: TrainConfig,
    vit_config: TrainConfig,
    run_ranks: Callable[..., Any],
    tmp_path: Path,
) -> None:
    (tmp_path / "train.csv").write_text("text,label\n" + "good,positive\nbad,negative\nso so,mixed\n" * 4)
    config = dataclasses.replace(bert_config, dataset=str(tmp_path / "train.csv"), max_steps=2)
    if pretrained:
        config = dataclasses.replace(config, architecture=None, checkpoint=minilm)
    names = {"0": "mixed", "1": "negative", "2": "positive"}
    for family_config, expected in (
        (config, names),
        (dataclasses.replace(vit_config, max_steps=2), {"0": "cat", "1": "dog"}),
    ):
        folder = run_ranks(family_config, 1).output_dir / "model"
        saved = json.loads((folder / "config.json").read_text())
        assert saved["id2label"] == expected
        assert saved["label2id"] == {name: int(index) for index, name in expected.items()}
        assert load_file(folder / "model.safetensors")["classifier.weight"].shape[0] == len(expected)


def test_a_saved_model_as_checkpoint(bert_config: TrainConfig, run_ranks: Callable[..., Any], tmp_path: Path) -> None:
    first = run_ranks(dataclasses.replace(bert_config, max_steps=2), 1)
    (tmp_path / "train.csv").write_text("text,label\n" + "good,positive\nbad,negative\nso so,mixed\n" * 4)
    checkpoint = str(first.output_dir / "model")
    config = dataclasses.replace(
        bert_config, architecture=None, checkpoint=checkpoint, dataset=str(tmp_path / "train.csv"), max_steps=2
    )
    second = run_ranks(config, 2)
    head = f"{checkpoint} has no head for 3 classes: classifier.bias, classifier.weight start at random"
    assert head in second.summary["notices"]
    saved = json.loads((second.output_dir / "model" / "config.json").read_text())
    assert sorted(saved["label2id"]) == ["mixed", "negative", "positive"]
    same = run_ranks(dataclasses.replace(config, dataset=bert_config.dataset), 1)
    assert not [notice for notice in same.summary["notices"] if "head" in notice]


def test_a_run_without_save_model(bert_config: TrainConfig, run_ranks: Callable[..., Any]) -> None:
    finished = run_ranks(dataclasses.replace(bert_config, max_steps=2, save_model=False), 1)
    assert not (finished.output_dir / "model").exists()
    assert json.loads((finished.output_dir / "summary.json").read_text())["steps"] == 2


def test_compact_vocab_trains_the_same_model(
    minilm: str, bert_config: TrainConfig, run_ranks: Callable[..., Any]
) -> None:
    config = dataclasses.replace(
        bert_config, architecture=None, checkpoint=minilm, max_steps=4, lr=1e-3, weight_decay=0.1
    )
    compact = run_ranks(config, 2)
    full = run_ranks(dataclasses.replace(config, compact_vocab=False), 2)
    assert compact.losses() == pytest.approx(full.losses(), rel=1e-5)
    name = "bert.embeddings.word_embeddings.weight"
    compact_rows, full_rows = (
        load_file(run.output_dir / "model" / "model.safetensors")[name] for run in (compact, full)
    )
    assert compact_rows.shape == full_rows.shape
    assert torch.allclose(compact_rows, full_rows, rtol=1e-5, atol=1e-6)
    start = load_file(Path(minilm) / "model.safetensors")
    before = next(value for key, value in start.items() if key.endswith("word_embeddings.weight"))
    assert not torch.equal(compact_rows[20000], before[20000]), "the row of a token that does not occur decays too"


def test_a_half_precision_checkpoint_trains_in_fp32(
    minilm: str, bert_config: TrainConfig, run_ranks: Callable[..., Any], tmp_path: Path
) -> None:
    half = tmp_path / "half"
    AutoModelForSequenceClassification.from_pretrained(minilm, num_labels=2).half().save_pretrained(half)
    AutoTokenizer.from_pretrained(minilm).save_pretrained(half)
    assert json.loads((half / "config.json").read_text())["dtype"] == "float16"
    config = dataclasses.replace(bert_config, architecture=None, checkpoint=str(half), max_steps=2)
    finished = run_ranks(config, 2)
    assert finished.exit_codes == (0, 0)
    trained = load_file(finished.output_dir / "model" / "model.safetensors")
    assert {value.dtype for value in trained.values()} == {torch.float32}


def test_a_vit_is_saved_at_its_training_size(
    vit_config: TrainConfig, run_ranks: Callable[..., Any], tmp_path: Path
) -> None:
    start = run_ranks(dataclasses.replace(vit_config, max_steps=2), 1).output_dir / "model"
    config = dataclasses.replace(vit_config, architecture=None, checkpoint=str(start), image_size=32, max_steps=2)
    finished = run_ranks(config, 1)
    folder = finished.output_dir / "model"
    model = ViTForImageClassification.from_pretrained(folder).eval()
    size = ViTImageProcessor.from_pretrained(folder).size
    assert (model.config.image_size, size["height"], size["width"]) == (32, 32, 32)
    with torch.no_grad():
        assert model(pixel_values=torch.zeros(1, 3, 32, 32)).logits.shape == (1, 2)


def without_room_for_a_model(config: TrainConfig, env: RankEnv, output_dir: Path) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    PreTrainedModel.save_pretrained = full
    run(config, env, output_dir)


def test_a_failed_save_loses_no_results(bert_config: TrainConfig, run_ranks: Callable[..., Any]) -> None:
    finished = run_ranks(dataclasses.replace(bert_config, max_steps=2), 1, target=without_room_for_a_model)
    assert finished.exit_codes == (0,)
    assert finished.summary["notices"][-1].startswith("the trained model could not be saved: ")
    assert not list(finished.output_dir.glob("*model*"))


def test_truncated_weights_are_one_line(
    minilm: str, bert_config: TrainConfig, run_ranks: Callable[..., Any], tmp_path: Path
) -> None:
    cut = tmp_path / "cut"
    shutil.copytree(minilm, cut)
    weights = cut / "model.safetensors"
    content = weights.read_bytes()
    weights.unlink()
    weights.write_bytes(content[: len(content) // 2])
    config = dataclasses.replace(bert_config, architecture=None, checkpoint=str(cut))
    failure = json.loads((run_ranks(config, 1).output_dir / "failure-rank00000.json").read_text())
    assert failure["user_error"]
    assert failure["message"].startswith(f"checkpoint {str(cut)!r} cannot be loaded: ")


def test_reordered_classes_keep_their_weights(
    bert_config: TrainConfig, run_ranks: Callable[..., Any], tmp_path: Path
) -> None:
    first = run_ranks(dataclasses.replace(bert_config, max_steps=2), 1)
    start = tmp_path / "start"
    shutil.copytree(first.output_dir / "model", start)
    before = json.loads((start / "config.json").read_text())
    names = [before["id2label"][str(index)] for index in range(2)]
    reversed_names = {
        **before,
        "id2label": {"0": names[1].upper(), "1": names[0].upper()},
        "problem_type": "regression",
    }
    (start / "config.json").write_text(
        json.dumps({**reversed_names, "label2id": {names[1].upper(): 0, names[0].upper(): 1}})
    )
    # The learning rate is too small to change anything, so the saved weights are the loaded ones.
    config = dataclasses.replace(
        bert_config, architecture=None, checkpoint=str(start), max_steps=1, lr=1e-12, weight_decay=0.0
    )
    second = run_ranks(config, 1)
    (notice,) = [notice for notice in second.summary["notices"] if "order" in notice]
    assert notice.startswith(f"{start} has its classes in the order {names[1].upper()}, {names[0].upper()}: ")
    heads = [
        load_file(folder / "model.safetensors")["classifier.weight"] for folder in (start, second.output_dir / "model")
    ]
    torch.testing.assert_close(heads[1], heads[0][[1, 0]])
    saved = json.loads((second.output_dir / "model" / "config.json").read_text())
    assert (saved["id2label"], saved["problem_type"]) == (before["id2label"], "single_label_classification")
