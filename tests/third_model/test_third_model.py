"""A user's own model family runs in a sweep on a real Slurm without any change of this package."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from disttrain.errors import UserError
from disttrain.models.family import load_family

HERE = Path(__file__).resolve().parent


@pytest.mark.slurm
def test_a_sweep_on_slurm(slurm_cluster: Mapping[str, str], tmp_path: Path) -> None:
    sweep = [sys.executable, "-m", "jobs"]
    target = [str(HERE / "bag_of_words.yaml"), "--root", str(tmp_path)]
    environ = {**os.environ, **slurm_cluster}
    done = subprocess.run([*sweep, "submit", *target, "--wait", "--poll", "1"], env=environ, check=False, timeout=180)
    assert done.returncode == 0
    rows = subprocess.run(
        [*sweep, "collect", *target, "--json"], env=environ, check=True, capture_output=True, text=True
    )
    (row,) = json.loads(rows.stdout)["runs"]
    assert row["hosts"] == ["node1", "node2"]
    assert row["eval_accuracy"] > 0.65


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("nowhere.at_all:Family", "model 'nowhere.at_all:Family': no module 'nowhere'"),
        ("json:Family", "model 'json:Family': module 'json' has no 'Family'"),
        ("json:JSONDecoder", "model 'json:JSONDecoder' is not a model family: it lacks INPUT, encode, build"),
    ],
)
def test_an_invalid_family_is_one_line(model: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        load_family(model)
    assert str(caught.value).startswith(message)
