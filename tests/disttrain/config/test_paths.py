"""Which values of a config are paths, and where they are."""

from __future__ import annotations

from pathlib import Path

import pytest

from disttrain.config.paths import absolute_paths
from disttrain.config.train_config import TrainConfig
from disttrain.errors import UserError


def test_a_tilde_is_the_home_of_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home" / "films").mkdir(parents=True)
    config = TrainConfig(model="bert", dataset="~/films")
    assert absolute_paths(config, str(tmp_path)).dataset == str(tmp_path / "home" / "films")


def test_a_hub_id_whose_owner_is_a_folder_here(tmp_path: Path) -> None:
    """Only the name of a data file says that it would be in that folder."""
    (tmp_path / "stanfordnlp").mkdir()
    config = TrainConfig(model="bert", dataset="stanfordnlp/imdb")
    assert absolute_paths(config, str(tmp_path)) == config


def test_the_dataset_of_an_own_family_must_exist(tmp_path: Path) -> None:
    """The family decides what its checkpoint is, but every family reads the same kinds of data."""
    config = TrainConfig(model="a:B", dataset="films.csv", checkpoint="timm:vit/small")
    with pytest.raises(UserError, match=r"^dataset 'films\.csv' does not exist"):
        absolute_paths(config, str(tmp_path))
