"""Which values of a config are paths, and where they are."""

from __future__ import annotations

from pathlib import Path

import pytest

from disttrain.config.paths import absolute_paths, results_root
from disttrain.config.train_config import TrainConfig
from disttrain.errors import UserError


def test_a_tilde_is_the_home_of_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home" / "films").mkdir(parents=True)
    config = TrainConfig(model="bert", dataset="~/films", output_dir="~/runs/a")
    absolute = absolute_paths(config, str(tmp_path))
    assert (absolute.dataset, absolute.output_dir) == (f"{tmp_path}/home/films", f"{tmp_path}/home/runs/a")
    with pytest.raises(UserError, match=rf"^dataset '~/gone' does not exist \(looked for {tmp_path}/home/gone\)$"):
        absolute_paths(TrainConfig(model="bert", dataset="~/gone"), str(tmp_path))


def test_an_output_folder_stays_as_it_is_written(tmp_path: Path) -> None:
    """The working directory of the rank is its base."""
    config = TrainConfig(model="bert", output_dir="link/../a")
    assert absolute_paths(config, str(tmp_path)) == config


def test_the_root_of_the_results(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert results_root({}) == Path("runs")
    assert results_root({"SWEEP_ROOT": "~/sweeps"}) == Path("/home/me/sweeps")
    assert results_root({"SWEEP_ROOT": "/scratch"}, Path("~/runs")) == Path("/home/me/runs")


def test_a_hub_id_whose_owner_is_a_folder_here(tmp_path: Path) -> None:
    (tmp_path / "stanfordnlp").mkdir()
    config = TrainConfig(model="bert", dataset="stanfordnlp/imdb")
    assert absolute_paths(config, str(tmp_path)) == config


def test_the_dataset_of_an_own_family_must_exist(tmp_path: Path) -> None:
    """The family decides what its checkpoint is, but every family reads the same kinds of data."""
    config = TrainConfig(model="a:B", dataset="films.csv", checkpoint="timm:vit/small")
    with pytest.raises(UserError, match=r"^dataset 'films\.csv' does not exist"):
        absolute_paths(config, str(tmp_path))
