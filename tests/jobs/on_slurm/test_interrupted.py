"""On the real Slurm: `sweep submit` is killed at many points, and each run still runs exactly once."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
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
    ("jobs.submission.launch:prepare", "before", 1),
    ("jobs.submission.launch:prepare", "after", 1),
    ("jobs.submission.launch:prepare_runs", "after", 1),
    ("jobs.slurm.submit:cluster_config", "after", 1),
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
    ("jobs.storage.ledger:released", "after", 2),
]
# What a wrapper of sbatch does around the real one ($REAL): a busy controller, and an answer that is lost.
SLOW = '#!/bin/sh\n: > "$0.started"\nsleep 6\nexec "$REAL" "$@"\n'
LOST = """#!/bin/sh
"$REAL" "$@" >/dev/null || exit
echo 'sbatch: error: Batch job submission failed: Socket timed out on send/recv operation' >&2
exit 1
"""


@pytest.mark.timeout(1200)
def test_every_run_once(slurm_cluster: Mapping[str, str], tmp_path: Path) -> None:
    """All submissions are killed first, then all are repeated, and their runs run side by side.

    With EVERY_POINT=1 in the environment at all points, which takes five minutes.
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
        _check_accounting(sweeping, file.stem, rows)


def test_a_slow_sbatch_that_outlives_its_submission(slurm_cluster: Mapping[str, str], tmp_path: Path) -> None:
    """Its array appears after the second submission has looked for it. `sweep status` cancels what is on hold."""
    sweeping = Sweeping(tmp_path, {**os.environ, **slurm_cluster})
    file = write_sweep(
        tmp_path / f"slow-{os.getpid()}.yaml", allocations=["1x1"], base=tiny_base(max_steps=2), seeds=[0, 1]
    )
    slow = wrapped(sweeping, tmp_path / "bin", SLOW)
    with subprocess.Popen(slow.command("submit", file), cwd=tmp_path, env=slow.environ) as process:
        wait_for((tmp_path / "bin" / "sbatch.started").exists, "call of sbatch", limit_s=30)
        process.kill()
    sweeping.run("submit", file)
    queue = partial(sweeping.outside, "squeue", "-h", "-r", f"--name={file.stem}", "-o", "%i %T %r")
    wait_for(lambda: "JobHeldUser" in queue(), "array of the slow sbatch", limit_s=30)
    folder = tmp_path / "runs" / file.stem / "two_nodes"
    assert "cancelled what an interrupted submission has left on hold" in sweeping.run("status", folder).stderr
    rows = wait_for(partial(_ended_rows, sweeping, folder), "end", limit_s=120)
    assert [row["state"] for row in rows] == ["COMPLETED"] * 2
    _check_accounting(sweeping, file.stem, rows)


def test_an_answer_of_sbatch_that_is_lost(slurm_cluster: Mapping[str, str], tmp_path: Path) -> None:
    sweeping = Sweeping(tmp_path, {**os.environ, **slurm_cluster})
    file = write_sweep(
        tmp_path / f"lost-{os.getpid()}.yaml", allocations=["1x1"], base=tiny_base(max_steps=2), seeds=[0, 1]
    )
    lost = wrapped(sweeping, tmp_path / "bin", LOST).run("submit", file, exit_code=2)
    assert "Socket timed out on send/recv operation; the job that it had accepted, " in lost.stderr
    sweeping.run("submit", file)
    folder = tmp_path / "runs" / file.stem / "two_nodes"
    rows = wait_for(partial(_ended_rows, sweeping, folder), "end", limit_s=120)
    assert [row["state"] for row in rows] == ["COMPLETED"] * 2
    _check_accounting(sweeping, file.stem, rows)


def wrapped(sweeping: Sweeping, folder: Path, script: str) -> Sweeping:
    """The same sweeps with another sbatch."""
    folder.mkdir()
    (folder / "sbatch").write_text(script)
    (folder / "sbatch").chmod(0o755)
    real = shutil.which("sbatch", path=sweeping.environ["PATH"])
    environ = {**sweeping.environ, "REAL": str(real), "PATH": f"{folder}:{sweeping.environ['PATH']}"}
    return Sweeping(sweeping.folder, environ)


def _check_accounting(sweeping: Sweeping, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Checks that nothing waits or runs, that each run has started once, and that the GPU-hours are those of sacct."""
    assert sweeping.outside("squeue", "-h", f"--name={name}", "-t", "PD,R,CG") == ""
    fields = "JobID,State,ElapsedRaw,AllocTRES,NodeList"
    query = ["sacct", "-n", "-P", "-X", f"--name={name}", "-S", "now-1hour", "-o", fields]
    jobs = [line.split("|") for line in sweeping.outside(*query).splitlines()]
    started = [job for job in jobs if "None" not in job[4]]
    assert len(started) == len(rows), jobs
    gpu_seconds = sum(int(elapsed) * int(re.findall(r"gres/gpu=(\d+)", tres)[0]) for _, _, elapsed, tres, _ in started)
    assert sum(row["gpu_hours"] for row in rows) == pytest.approx(gpu_seconds / 3600, abs=1e-5)


def _ended_rows(sweeping: Sweeping, folder: Path) -> list[dict[str, Any]]:
    rows = sweeping.status(folder)
    ended = all(row["state"] not in ("PENDING", "RUNNING", "COMPLETING", "NOT_SUBMITTED") for row in rows)
    return rows if ended else []
