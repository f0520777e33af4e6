"""The saved model, opened in another process by transformers only, gives the accuracy that the run recorded."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
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
from tests.disks import mounted

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


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 100 kB, which has room for the records of a run and not for its model."""
    with mounted(tmp_path / "disk", "size=100k") as folder:
        yield folder


def test_a_full_disk_loses_no_results(
    bert_config: TrainConfig, run_ranks: Callable[..., Any], small_disk: Path
) -> None:
    """safetensors raises an error of its own, not an OSError."""
    finished = run_ranks(dataclasses.replace(bert_config, max_steps=2), 2, small_disk / "run")
    assert finished.exit_codes == (0, 0)
    assert finished.summary["notices"][-1].startswith("the trained model could not be saved: ")
    assert "No space left on device" in finished.summary["notices"][-1]
    assert finished.summary["steps"] == 2
    assert not [path for path in finished.output_dir.iterdir() if "model" in path.name]


def save_slowly(config: TrainConfig, env: RankEnv, output_dir: Path) -> None:
    """Runs a rank, which writes when it has ended; saving the model takes two seconds."""
    save = PreTrainedModel.save_pretrained

    def slow(*arguments: Any, **options: Any) -> None:
        time.sleep(2)
        save(*arguments, **options)

    PreTrainedModel.save_pretrained = slow
    run(config, env, output_dir)
    (output_dir / f"end-{env.rank}").write_text(str(time.time()))


def test_no_rank_leaves_before_the_model_is_saved(bert_config: TrainConfig, run_ranks: Callable[..., Any]) -> None:
    """srun ends a job two minutes after the first rank has left."""
    finished = run_ranks(dataclasses.replace(bert_config, max_steps=2), 3, target=save_slowly)
    assert finished.exit_codes == (0, 0, 0)
    ends = [float((finished.output_dir / f"end-{rank}").read_text()) for rank in range(3)]
    assert min(ends) >= (finished.output_dir / "summary.json").stat().st_mtime - 0.1
