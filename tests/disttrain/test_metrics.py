"""log_metrics: one line for each call, in a sweep and outside, with numbers of every library."""

from __future__ import annotations

import inspect
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch

from disttrain import metrics
from disttrain.metrics import log_metrics


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SWEEP_METRICS", str(tmp_path / "m.jsonl"))
    return tmp_path / "m.jsonl"


def test_each_call_is_a_line(file: Path) -> None:
    log_metrics(step=10, loss=0.5)
    log_metrics({"step": 20, "eval/accuracy é": 1}, loss=0.25)
    assert [json.loads(line) for line in file.read_text().splitlines()] == [
        {"step": 10, "loss": 0.5},
        {"step": 20, "eval/accuracy é": 1, "loss": 0.25},
    ]


def test_scalars_of_libraries_are_numbers(file: Path) -> None:
    log_metrics(step=numpy.int64(3), loss=torch.tensor(0.5, dtype=torch.bfloat16), lr=numpy.float32(0.25), nan=math.nan)
    values = json.loads(file.read_text())
    assert math.isnan(values.pop("nan"))
    assert values == {"step": 3, "loss": 0.5, "lr": 0.25}
    assert isinstance(values["step"], int)


def test_outside_a_sweep_nothing_happens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SWEEP_METRICS", raising=False)
    monkeypatch.chdir(tmp_path)
    log_metrics(loss=torch.zeros(2))
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_cannot_be_written_ends_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SWEEP_METRICS", str(tmp_path / "absent" / "m.jsonl"))
    log_metrics(loss=0.5)
    path = tmp_path / "absent" / "m.jsonl"
    assert capsys.readouterr().err == f"log_metrics: {path} cannot be written: No such file or directory\n"


CIRCLE: list[Any] = []
CIRCLE.append(CIRCLE)


@pytest.mark.parametrize(
    "value",
    [torch.zeros(2), numpy.zeros(2), Path("a"), 1j, b"ab", CIRCLE, 10**5000, {(1, 2): 0.5}],
    ids=lambda value: type(value).__name__,
)
def test_a_value_that_is_no_number_ends_no_run(value: Any, file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log_metrics({"step": 1, "bad": value, "loss": 0.5})
    assert file.read_text() == '{"step": 1, "loss": 0.5}\n'
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("log_metrics: 'bad' is left out: ")


def test_a_name_that_is_no_text_ends_no_run(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values: Any = {("a", 1): 2.0, "loss": 0.5}
    log_metrics(values)
    assert file.read_text() == '{"loss": 0.5}\n'
    assert capsys.readouterr().err.startswith("log_metrics: ('a', 1) is left out: TypeError: ")


@pytest.mark.process
def test_the_module_can_be_copied(file: Path, tmp_path: Path) -> None:
    """Into a script that has no other part of this project."""
    script = tmp_path / "train.py"
    script.write_text(inspect.getsource(metrics) + "\nlog_metrics(step=1, loss=0.5)\n")
    subprocess.run([sys.executable, "-I", script], check=True)
    assert file.read_text() == '{"step": 1, "loss": 0.5}\n'
