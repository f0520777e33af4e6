"""The benchmark of large sweeps, on a small one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.benchmarks.tables import HEAD

pytestmark = pytest.mark.process


def test_a_small_sweep_gives_its_table(tmp_path: Path, repository: Path) -> None:
    out = tmp_path / "table.md"
    words = [sys.executable, "-m", "tests.benchmarks.scale", "--quick", "--work", str(tmp_path / "work")]
    ran = subprocess.run([*words, "--out", str(out)], cwd=repository, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert out.read_text(encoding="utf-8") == f"{HEAD}\n{ran.stdout}"
    assert ran.stdout.count("| 200 |") == 7
