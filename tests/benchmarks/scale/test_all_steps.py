"""The benchmark of collect with all steps, on a small sweep."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.process


def test_a_small_sweep_gives_its_row(tmp_path: Path, repository: Path) -> None:
    words = [sys.executable, "-m", "tests.benchmarks.scale.all_steps", "--quick", "--work", str(tmp_path / "work")]
    ran = subprocess.run(words, cwd=repository, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "| 200 | 20 | " in ran.stdout
