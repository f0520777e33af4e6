"""On the real Slurm: `sweep submit` is killed at many points, and each run still runs exactly once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.jobs.sweeping import Sweeping, tiny_base, wait_for, write_sweep

pytestmark = pytest.mark.slurm

# Kills the process at the n-th call of a function, before or after it has done its work.
DRIVER = """
import importlib, os, signal, sys
module, _, name = sys.argv[1].rpartition(":")
moment, number = sys.argv[2], int(sys.argv[3])
owner = importlib.import_module(module.partition(".class.")[0])
if ".class." in module:
    owner = getattr(owner, module.partition(".class.")[2])
original, calls = getattr(owner, name), [0]

def counted(*arguments, **options):
    calls[0] += 1
    if moment == "before" and calls[0] == number:
        os.kill(os.getpid(), signal.SIGKILL)
    result = original(*arguments, **options)
    if moment == "after" and calls[0] == number:
        os.kill(os.getpid(), signal.SIGKILL)
    return result

setattr(owner, name, counted)
sys.argv[:] = ["sweep", *sys.argv[4:]]
from jobs.cli import main
main()
"""
# Two groups, each an array of two runs.
POINTS = [
    ("jobs.storage.ledger:intend", "before", 1),
    ("jobs.storage.ledger:intend", "after", 1),
    ("submitit.core.utils.class.CommandFunction:__call__", "before", 1),
    ("submitit.core.utils.class.CommandFunction:__call__", "after", 1),
    ("submitit.core.utils.class.JobPaths:move_temporary_file", "before", 1),
    ("submitit.core.utils.class.JobPaths:move_temporary_file", "after", 2),
    ("submitit.core.utils.class.JobPaths:move_temporary_file", "after", 3),
    ("jobs.storage.ledger:record", "before", 1),
    ("jobs.storage.ledger:record", "after", 1),
    ("jobs.slurm.submit:release", "after", 1),
    ("jobs.storage.ledger:released", "after", 1),
    ("jobs.storage.ledger:intend", "after", 2),
    ("submitit.core.utils.class.CommandFunction:__call__", "after", 2),
    ("jobs.storage.ledger:record", "after", 2),
    ("jobs.slurm.submit:release", "after", 2),
]


def test_every_run_once(slurm_cluster: Mapping[str, str], tmp_path: Path) -> None:
    """All submissions are killed first, then all are repeated, and their runs run side by side.

    With EVERY_POINT=1 in the environment at all points, which takes four minutes.
    """
    sweeping = Sweeping(tmp_path, {**os.environ, **slurm_cluster})
    (tmp_path / "driver.py").write_text(DRIVER)
    files = []
    points = POINTS if os.environ.get("EVERY_POINT") else POINTS[3::2]
    for number, (function, moment, call) in enumerate(points):
        name = f"killed-{os.getpid()}-{number}"
        file = write_sweep(
            tmp_path / f"{name}.yaml", allocations=["1x1", "2x1"], base=tiny_base(max_steps=2), seeds=[0, 1]
        )
        command = [sys.executable, str(tmp_path / "driver.py"), function, moment, str(call), "submit", str(file)]
        killed = subprocess.run(
            command, cwd=tmp_path, env=sweeping.environ, capture_output=True, text=True, timeout=60, check=False
        )
        assert killed.returncode == -signal.SIGKILL, f"{function} {moment} {call}: {killed.stdout}{killed.stderr}"
        files.append(file)
    for file in files:
        sweeping.run("submit", file)
    for point, file in zip(points, files, strict=True):
        folder = tmp_path / "runs" / file.stem / "two_nodes"
        rows = wait_for(partial(_ended_rows, sweeping, folder), f"end of {point}", limit_s=150)
        assert [row["state"] for row in rows] == ["COMPLETED"] * 4, point
        assert sweeping.outside("squeue", "-h", f"--name={file.stem}", "-t", "PD,R,CG") == "", point
        started = [
            line
            for line in sweeping.outside(
                "sacct", "-n", "-P", "-X", f"--name={file.stem}", "-S", "now-1hour", "-o", "JobID,State,Start"
            ).splitlines()
            if "COMPLETED" in line or "FAILED" in line
        ]
        assert len(started) == 4, f"{point}: {started}"


def _ended_rows(sweeping: Sweeping, folder: Path) -> list[dict[str, Any]]:
    rows = sweeping.status(folder)
    ended = all(row["state"] not in ("PENDING", "RUNNING", "COMPLETING", "NOT_SUBMITTED") for row in rows)
    return rows if ended else []
