"""The stage of a run: noted by rank 0, for as long as no newer attempt has started."""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from disttrain.config.train_config import TrainConfig
from disttrain.environment.rank_env import RankEnv
from disttrain.records.atomic_write import write_text
from disttrain.records.lifecycle.stage import end_stages, enter_stage, in_stage
from disttrain.records.record_files import read_stage
from disttrain.run import run

if TYPE_CHECKING:
    from tests.disttrain.conftest import RunRanks

ENV = RankEnv(job_id="7", restart_count=1)


def stage_of(folder: Path) -> str | None:
    stage = read_stage(folder)
    return None if stage is None else stage.stage


def test_each_stage_replaces_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before_s = time.time()
    enter_stage(tmp_path, ENV, "importing")
    enter_stage(tmp_path, ENV, "training", steps=9)
    with in_stage(tmp_path, ENV, "evaluating"):
        assert stage_of(tmp_path) == "training", "it has just begun"
    monkeypatch.setattr("disttrain.records.lifecycle.stage._SHORT_S", 0.0)
    with in_stage(tmp_path, ENV, "evaluating"):
        noted = read_stage(tmp_path)
    assert noted is not None
    assert (noted.stage, noted.steps, noted.job_id, noted.restart_count) == ("evaluating", 9, "7", 1)
    assert before_s <= noted.since_s <= time.time()
    assert stage_of(tmp_path) == "training"
    end_stages(tmp_path, ENV)
    assert list(tmp_path.iterdir()) == []


def test_other_ranks_note_nothing(tmp_path: Path) -> None:
    other = dataclasses.replace(ENV, rank=1, world_size=2)
    enter_stage(tmp_path, other, "importing")
    assert stage_of(tmp_path) is None
    enter_stage(tmp_path, ENV, "importing")
    end_stages(tmp_path, other)
    assert stage_of(tmp_path) == "importing"


def test_an_overtaken_attempt_changes_nothing(tmp_path: Path) -> None:
    newer = dataclasses.replace(ENV, restart_count=2)
    enter_stage(tmp_path, ENV, "importing")
    enter_stage(tmp_path, newer, "importing")
    enter_stage(tmp_path, ENV, "training", steps=9)
    end_stages(tmp_path, ENV)
    noted = read_stage(tmp_path)
    assert noted is not None
    assert (noted.stage, noted.steps, noted.restart_count) == ("importing", None, 2)


@pytest.mark.parametrize("text", ["", "[]", "{", json.dumps({"stage": 7})])
def test_a_damaged_file_is_written_again(text: str, tmp_path: Path) -> None:
    (tmp_path / "stage.json").write_text(text)
    enter_stage(tmp_path, ENV, "saving")
    assert stage_of(tmp_path) == "saving"


def test_a_file_that_cannot_be_written_fails_no_run(tmp_path: Path) -> None:
    folder = tmp_path / "gone"
    enter_stage(folder, ENV, "importing")
    with in_stage(folder, ENV, "saving"):
        pass
    end_stages(folder, ENV)
    (tmp_path / "stage.json").mkdir()  # so it cannot be replaced, nor removed
    enter_stage(tmp_path, ENV, "importing")
    end_stages(tmp_path, ENV)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["stage.json"]


def note_stages(config: TrainConfig, env: RankEnv, output_dir: Path) -> None:
    """Runs a rank that also appends each of its stages to a file."""

    def write_and_append(path: Path, text: str) -> None:
        write_text(path, text)
        with (output_dir / f"stages-{env.rank}.jsonl").open("a") as file:
            file.write(text)

    pytest.MonkeyPatch().setattr("disttrain.records.lifecycle.stage.write_text", write_and_append)
    pytest.MonkeyPatch().setattr("disttrain.records.lifecycle.stage._SHORT_S", 0.0)
    run(config, env, output_dir)


@pytest.mark.process
def test_the_stages_of_a_real_run(bert_config: TrainConfig, run_ranks: RunRanks) -> None:
    config = dataclasses.replace(bert_config, max_steps=2, checkpoint_every=1)
    finished = run_ranks(config, 2, target=note_stages)
    assert finished.exit_codes == (0, 0)
    (path,) = finished.output_dir.glob("stages-*")
    stages = [json.loads(line) for line in path.read_text().splitlines()]
    names = ["importing", "connecting", "start check", "preparing data", "training", "saving", "training"]
    # The last step is evaluated and saved, and then the model and the summary are saved.
    assert [stage["stage"] for stage in stages] == [*names, "evaluating", "training", *names[5:], "saving"]
    assert {stage["steps"] for stage in stages[4:]} == {2}
    assert stages[0]["steps"] is None
    assert stage_of(finished.output_dir) is None, "it is removed at the end"
