"""The steps that several commands share."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.cli.shared import plan_sweep, sweeps_root
from tests.jobs.sweeping import train_config


def test_the_root_option_is_stronger_than_the_variable(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SWEEP_ROOT", raising=False)
    assert sweeps_root(None) == tmp_path / "runs"
    monkeypatch.setenv("SWEEP_ROOT", "/scratch/sweeps")
    assert sweeps_root(None) == Path("/scratch/sweeps")
    assert sweeps_root(Path("here")) == tmp_path / "here"
    monkeypatch.setenv("HOME", "/home/me")
    assert sweeps_root(Path("~/runs")) == Path("/home/me/runs")  # a shell leaves --root=~/runs as it is


def test_a_value_may_have_an_equals_sign(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text("name: s\nallocations: [1x1]\nbase: {model: bert}\n")
    sweep, plan = plan_sweep(tmp_path / "s.yaml", "local", ["text_column=a=b", "lr=1e-3"], tmp_path)
    assert sweep.overrides == {"text_column": "a=b", "lr": "1e-3"}
    assert [(train_config(run).text_column, train_config(run).lr) for run in plan.runs] == [("a=b", 1e-3)]
