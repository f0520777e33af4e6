"""What an attempt takes over from an earlier one in the folder of its run, and what it removes."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from disttrain.config.train_config import TrainConfig
from disttrain.environment.rank_env import RankEnv
from disttrain.errors import NewerAttempt
from disttrain.records.record_files import failure_name, metrics_name, write_json
from disttrain.records.run_folder import begin_run, remove_results, run_info, save_model

CONFIG = TrainConfig(model="bert").resolved()
OTHER = dataclasses.replace(CONFIG, lr=1.0)
FIRST, RESTARTED = RankEnv(), RankEnv(restart_count=1)


def write_complete(folder: Path, config: TrainConfig, **by_sweep: object) -> None:
    """A complete run of this config."""
    write_json(folder / "run.json", {**dataclasses.asdict(run_info(config, FIRST)), **by_sweep})
    write_json(folder / "summary.json", {"steps": 3})


def test_a_restarted_job_returns_its_summary(tmp_path: Path) -> None:
    """A node may fail after the summary is written."""
    write_complete(tmp_path, CONFIG)
    summary = begin_run(CONFIG, RESTARTED, tmp_path)
    assert summary is not None
    assert summary["steps"] == 3


def test_a_job_that_is_sent_again_trains_again(tmp_path: Path) -> None:
    write_complete(tmp_path, CONFIG)
    assert begin_run(CONFIG, FIRST, tmp_path) is None


def test_a_run_in_the_folder_of_another_trains(tmp_path: Path) -> None:
    """Neither it nor its restart may return the summary of the other run."""
    write_complete(tmp_path, OTHER)
    for env in (RESTARTED, FIRST, RESTARTED):
        assert begin_run(CONFIG, env, tmp_path) is None
    assert not (tmp_path / "summary.json").exists()
    assert json.loads((tmp_path / "run.json").read_text())["run_id"] == run_info(CONFIG, FIRST).run_id


def test_the_run_file_of_a_sweep_is_kept(tmp_path: Path) -> None:
    """A sweep knows more about its run; paths in its config are as written, so the id that it has counts."""
    write_complete(tmp_path, CONFIG, run_id="1x1-as-the-sweep-has-it", point={"lr": 1.0})
    before = (tmp_path / "run.json").read_bytes()
    assert begin_run(CONFIG, FIRST, tmp_path) is None
    assert begin_run(CONFIG, RESTARTED, tmp_path) is not None
    assert (tmp_path / "run.json").read_bytes() == before


def test_only_files_of_ranks_that_are_gone_are_removed(tmp_path: Path) -> None:
    """The ranks of this attempt may already have written theirs."""
    for rank in range(4):
        (tmp_path / metrics_name(rank)).touch()
        (tmp_path / failure_name(rank)).touch()
    for name in ("summary.json", "run.json"):
        (tmp_path / name).touch()
    for folder in ("model", ".model.17"):
        (tmp_path / folder).mkdir()
    remove_results(tmp_path, world_size=2)
    left = [name(rank) for name in (failure_name, metrics_name) for rank in (0, 1)]
    assert sorted(path.name for path in tmp_path.iterdir()) == [*left, "run.json"]


def test_an_overtaken_attempt_keeps_the_newer_model(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "weights").write_text("newer")

    def refuse() -> None:
        raise NewerAttempt("started again")

    with pytest.raises(NewerAttempt):
        save_model(tmp_path, lambda folder: (folder / "weights").write_text("older"), refuse)
    assert (tmp_path / "model" / "weights").read_text() == "newer"
    save_model(tmp_path, lambda folder: (folder / "weights").write_text("again"), lambda: None)
    assert (tmp_path / "model" / "weights").read_text() == "again"
