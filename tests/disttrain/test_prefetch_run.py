"""The inputs of a sweep are fetched once from a hub, and pinned; the runs then read the cache, and ask no hub."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from disttrain.config.hub_inputs import OFFLINE, input_config, input_id
from disttrain.config.train_config import TrainConfig
from disttrain.data.hub_access import CACHED, hub_access
from disttrain.records.job_files.prefetch_files import (
    PrefetchRequest,
    pinned_for,
    read_manifest,
    read_outcome,
    write_request,
)
from tests.hub.repositories import DATASET, MODEL, make_repositories
from tests.hub.stand_in import Hub, serve

pytestmark = pytest.mark.process

CONFIG = TrainConfig(
    model="bert", checkpoint=MODEL, dataset=DATASET, max_length=32, max_steps=2, device="cpu", num_workers=0
)


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    make_repositories(tmp_path / "hub")
    with serve(tmp_path / "hub") as served:
        yield served


class Fetching:
    """Calls of `prefetch_run` in one folder, with a cache of their own.

    Args:
        folder: The folder of the sweep.
        hf_home: The cache.
        hub: The hub.

    Attributes:
        environ: The environment of the calls.
    """

    def __init__(self, folder: Path, hf_home: Path, hub: Hub) -> None:
        self.folder = folder
        self.hub = hub
        folder.mkdir()
        # The hub's client waits for seconds before it tries again.
        (folder / "sitecustomize.py").write_text(
            "import time\nsleep = time.sleep\ntime.sleep = lambda s: sleep(s / 100)"
        )
        self.environ = {
            **os.environ, "HF_HOME": str(hf_home), "HF_ENDPOINT": hub.url, "PYTHONPATH": str(folder),
        }  # fmt: skip

    def __call__(self, *configs: TrainConfig, update: bool = False) -> subprocess.CompletedProcess[str]:
        inputs = [dataclasses.asdict(inputs) for config in configs if (inputs := input_config(config))]
        write_request(self.folder, PrefetchRequest(inputs, update=update))
        self.hub.asked.clear()
        command = [sys.executable, "-P", "-m", "disttrain.prefetch_run", str(self.folder)]
        return subprocess.run(command, env=self.environ, capture_output=True, text=True, check=False)

    def error(self) -> str:
        """The error of the latest call."""
        outcome = read_outcome(self.folder)
        assert outcome is not None
        assert outcome.error is not None
        return outcome.error

    def pinned(self, config: TrainConfig) -> dict[str, str]:
        return dict(pinned_for(config, read_manifest(self.folder)))


@pytest.fixture
def fetch(tmp_path: Path, hub: Hub) -> Fetching:
    return Fetching(tmp_path / "sweep", tmp_path / "hf", hub)


# One rank of a run, as `disttrain.stored_run` starts it. A call that tokenises fails.
RANK = """
import json, os, sys
from pathlib import Path
from disttrain.config.hub_inputs import PINNED, with_pinned
from disttrain.config.train_config import TrainConfig
fields, pinned, folder = json.loads(sys.argv[1])
config = with_pinned(TrainConfig(**fields), {PINNED: pinned}, os.environ)
from disttrain.data import texts
from disttrain.environment.rank_env import RankEnv
from disttrain.run import run
texts._append_tokens = None
run(config, RankEnv(), Path(folder))
"""


def test_a_run_tokenises_nothing_and_asks_no_hub(fetch: Fetching, hub: Hub, tmp_path: Path) -> None:
    ended = fetch(CONFIG)
    assert ended.returncode == 0, ended.stderr
    (model,), (dataset,) = hub.commits("models", MODEL), hub.commits("datasets", DATASET)
    assert fetch.pinned(CONFIG) == {"checkpoint_revision": model, "dataset_revision": dataset}
    pinned = {MODEL: model, DATASET: dataset}
    assert hub_access([MODEL], [DATASET], fetch.environ, pinned) == dict.fromkeys(pinned, CACHED)
    assert ended.stdout.splitlines()[0] == f"input 1 of 1: {DATASET} for bert with {MODEL}"
    assert ended.stdout.splitlines()[-1].endswith("2300 training examples")
    assert sorted(hub.downloads()) == [
        "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "train.csv", "validation.csv"
    ]  # fmt: skip
    hub.asked.clear()
    other = dataclasses.replace(CONFIG, lr=0.5, seed=3)  # another run with the same inputs
    given = json.dumps([dataclasses.asdict(other), fetch.pinned(other), str(tmp_path / "run")])
    environ = {name: value for name, value in fetch.environ.items() if name not in (OFFLINE, "HF_DATASETS_OFFLINE")}
    ended = subprocess.run(
        [sys.executable, "-c", RANK, given], env=environ, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["steps"] == 2
    assert hub.asked == []


def test_what_is_pinned_stays_until_an_update(fetch: Fetching, hub: Hub) -> None:
    assert fetch(CONFIG).returncode == 0
    before = fetch.pinned(CONFIG)
    (hub.root / "datasets" / DATASET / "README.md").write_text("More films.\n")
    longer = dataclasses.replace(CONFIG, max_length=48)
    assert fetch(longer).returncode == 0
    assert (fetch.pinned(longer), hub.downloads()) == (before, [])
    assert fetch(CONFIG, update=True).returncode == 0
    assert fetch.pinned(CONFIG)["dataset_revision"] == list(hub.commits("datasets", DATASET))[-1]
    assert fetch.pinned(CONFIG)["checkpoint_revision"] == before["checkpoint_revision"]
    assert fetch.pinned(longer) == {}, "all inputs of a sweep have the same revisions"
    updated = fetch.pinned(CONFIG)
    assert fetch(longer, CONFIG).returncode == 0
    assert (fetch.pinned(longer), fetch.pinned(CONFIG)) == (updated, updated)


def test_a_model_without_image_processor_is_known_offline(fetch: Fetching, hub: Hub, vit_config: TrainConfig) -> None:
    from transformers import ViTConfig, ViTForImageClassification

    name = "tests/tiny-vit"
    tiny = ViTConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64, patch_size=8)
    tiny.image_size = 16
    ViTForImageClassification(tiny).save_pretrained(hub.root / "models" / name)
    config = dataclasses.replace(vit_config, architecture=None, checkpoint=name)
    assert fetch(config).returncode == 0
    program = (
        "import sys; from disttrain.models.normalisation import checkpoint_normalisation\n"
        "assert checkpoint_normalisation(*sys.argv[1:]) is None"
    )
    command = [sys.executable, "-c", program, name, fetch.pinned(config)["checkpoint_revision"]]
    ended = subprocess.run(
        command, env={**fetch.environ, "HF_HUB_OFFLINE": "1"}, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr


def test_a_repetition_fetches_only_what_is_missing(fetch: Fetching, hub: Hub) -> None:
    hub.files_until_down = 3
    ended = fetch(CONFIG)
    assert ended.returncode == 2
    assert "the hub does not answer" in fetch.error() or "cannot be loaded" in fetch.error()
    assert "\n" not in fetch.error()
    assert fetch.pinned(CONFIG) == {}
    assert {"train.csv", "validation.csv"} <= set(hub.downloads())
    hub.files_until_down, hub.is_up = None, True
    assert fetch(CONFIG).returncode == 0
    assert hub.downloads()
    assert not {"train.csv", "validation.csv"} & set(hub.downloads())
    assert set(fetch.pinned(CONFIG)) == {"checkpoint_revision", "dataset_revision"}


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"dataset": "tests/nothing"}, "the hub has no dataset 'tests/nothing' (is the name correct?"),
        ({"checkpoint_revision": "v9"}, f"model '{MODEL}' has no revision 'v9' (correct checkpoint_revision)"),
        ({"label_column": "stars"}, "column 'stars'"),
    ],
)
def test_a_mistake_is_one_line(fetch: Fetching, changes: dict[str, str], error: str) -> None:
    config = dataclasses.replace(CONFIG, **changes)  # type: ignore[arg-type]  # fields of one type
    ended = fetch(config)
    assert ended.returncode == 2
    assert error in fetch.error()
    assert "Traceback" not in ended.stderr
    assert fetch.pinned(config) == {}


def test_data_of_this_machine_are_encoded_without_a_hub(fetch: Fetching, hub: Hub, tmp_path: Path) -> None:
    local = TrainConfig(
        model="bert", dataset=str(hub.root / "datasets" / DATASET), architecture={"hidden_size": 32}, max_length=32
    )
    hub.is_up = False
    assert fetch(local).returncode == 0
    (entry,) = read_manifest(fetch.folder).values()
    assert entry.revisions == {}
    assert list((tmp_path / "hf" / "datasets" / "disttrain").glob("*/arrays.json"))
    inputs = input_config(local)
    assert inputs is not None
    assert json.loads((fetch.folder / "prefetch.json").read_text())["inputs"].keys() == {input_id(inputs)}
