"""The work of a command grows as the number of runs does, not faster."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from jobs.storage.sweep_folder import SweepFolder
from tests.benchmarks.scale.fake_slurm import FakeSlurm
from tests.benchmarks.scale.large_sweep import LEAST_RUNS, write_large_sweep
from tests.jobs.command import Sweep

pytestmark = pytest.mark.process

FACTOR = 4  # what a command does once makes its growth a little smaller
COMMANDS = {
    "plan": ("plan", "s.yaml"),
    "submit": ("submit", "s.yaml"),
    "status": ("status",),
    "status again": ("status",),
    "status of all": ("status", "--all-runs"),
    "collect": ("collect",),
    "submit again": ("submit", "s.yaml"),
}


def count_calls(run: Callable[[], Any]) -> int:
    """The number of calls of functions, also of those written in C."""
    count = 0

    def note(_frame: FrameType, event: str, _argument: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(note)
    try:
        run()
    finally:
        sys.setprofile(None)
    return count


def test_the_work_of_each_command_is_linear(sweep: Sweep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = os.environ["PATH"]

    def calls(runs: int) -> dict[str, int]:
        """The calls of each command on a sweep of this number of runs, in job arrays of 25."""
        folder = tmp_path / str(runs)
        write_large_sweep(folder, runs, options=", max_array_size: 25")
        slurm = FakeSlurm(folder / "slurm")
        monkeypatch.chdir(folder)
        monkeypatch.setenv("PATH", f"{slurm.programs}{os.pathsep}{path}{os.pathsep}/usr/bin{os.pathsep}/bin")
        counts = {}
        for name, command in COMMANDS.items():
            counts[name] = count_calls(partial(sweep, *command))
            if name == "submit":
                slurm.answer(SweepFolder(folder / "runs" / "s" / "slurm"))
        return counts

    calls(LEAST_RUNS)  # what is imported and cached on the first call
    (tmp_path / str(LEAST_RUNS)).rename(tmp_path / "first")
    few, many = calls(LEAST_RUNS), calls(FACTOR * LEAST_RUNS)
    growth = {name: many[name] / few[name] for name in COMMANDS}
    assert max(growth.values()) <= FACTOR, growth
