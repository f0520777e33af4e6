"""The example of docs/your-model.md runs as it is printed, and needs nothing but the public module."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import disttrain.api

REPOSITORY = Path(__file__).resolve().parents[1]
PAGE = REPOSITORY / "docs" / "your-model.md"


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


@pytest.mark.process
def test_the_example_runs(tmp_path: Path) -> None:
    (tmp_path / "bag_of_words.py").write_text(blocks("python")[0])
    (tmp_path / "bag_of_words.yaml").write_text(blocks("yaml")[0])
    shutil.copytree(REPOSITORY / "sweeps" / "data" / "sst2", tmp_path / "sst2")
    command = [sys.executable, "-m", "jobs", "submit", "bag_of_words.yaml", "--cluster", "local", "--wait"]
    environ = {**os.environ, "PYTHONPATH": str(REPOSITORY), "HF_HOME": str(tmp_path / "hf")}
    subprocess.run(command, cwd=tmp_path, env=environ, check=True, timeout=200)
    summaries = list(tmp_path.glob("runs/bag-of-words/local/runs/*/summary.json"))
    assert len(summaries) == 2
    assert all(json.loads(path.read_text())["eval_accuracy"] > 0.65 for path in summaries)


def test_the_example_is_the_tested_family() -> None:
    """The same file runs on the real Slurm in tests/third_model."""
    family = (REPOSITORY / "tests" / "third_model" / "bag_of_words.py").read_text(encoding="utf-8")
    assert blocks("python")[0] == family


def test_a_family_imports_one_module() -> None:
    imported = re.findall(r"^from (disttrain\S*) import", blocks("python")[0], re.MULTILINE)
    assert imported == ["disttrain.api"]
    assert all(hasattr(disttrain.api, name) for name in disttrain.api.__all__)
