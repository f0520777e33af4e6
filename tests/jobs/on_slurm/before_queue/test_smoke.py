"""On the real Slurm: runs wait for the smoke run of their allocation, and are cancelled with its reason."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.jobs.sweeping import Sweeping, tiny_base, wait_for, write_sweep

pytestmark = pytest.mark.slurm

FAILS_ON_TWO_NODES = """
import os, sys
print("arguments", sys.argv[1:])
if os.environ["RANK"] == "1":
    raise ValueError("boom")
"""


@pytest.fixture
def sweeping(slurm_cluster: Mapping[str, str], tmp_path: Path) -> Iterator[Sweeping]:
    sweeping = Sweeping(tmp_path, {**os.environ, **slurm_cluster})
    yield sweeping
    for name in (name_in(tmp_path), f"{name_in(tmp_path)}-smoke"):
        subprocess.run(["scancel", f"--name={name}"], env=sweeping.environ, check=False)


def name_in(folder: Path) -> str:
    return f"smoked-{folder.parent.name}-{folder.name}"  # a cluster that stays up has jobs of earlier sessions


def test_a_failed_smoke_run_cancels_the_runs_of_its_allocation(sweeping: Sweeping, tmp_path: Path) -> None:
    script, command = tmp_path / "train.py", f"{sys.executable} train.py"
    script.write_text(FAILS_ON_TWO_NODES)
    path = tmp_path / f"{name_in(tmp_path)}.yaml"
    write_sweep(path, allocations=["1x1", "2x1"], command=command, smoke="--steps 2", axes={"lr": [0.1, 0.3]})
    done = sweeping.run("submit", path, "--smoke", "--wait", "--poll", "1", exit_code=1, timeout_s=120)
    assert "4 runs, 2 CANCELLED, 2 COMPLETED" in done.stdout, done.stdout
    rows = sweeping.status()
    assert [row["state"] for row in rows] == ["COMPLETED"] * 2 + ["CANCELLED"] * 2
    for row in rows[2:]:
        assert row["reason"].startswith("the smoke run of 2x1 failed: rank 1 on node"), row["reason"]
        assert row["reason"].endswith(": ValueError: boom")
    collected = json.loads(sweeping.run("collect", "--json").stdout)["runs"]
    assert [row["reason"] for row in collected] == [row["reason"] for row in rows]
    query = ("sacct", "-nPX", "-S", "now-1hour", "-o", "JobID,State,NodeList,TimelimitRaw")
    jobs = [line.split("|") for line in sweeping.outside(*query, f"--name={path.stem}").splitlines()]
    cancelled = [job for job in jobs if job[1].startswith("CANCELLED")]
    assert all(job[2].startswith("None") for job in cancelled), jobs
    smoke = [line.split("|") for line in sweeping.outside(*query, f"--name={path.stem}-smoke").splitlines()]
    assert sorted((job[1], job[3]) for job in smoke) == [("COMPLETED", "10"), ("FAILED", "10")]
    hint = sweeping.run("logs", rows[3]["run_id"], exit_code=2).stderr
    folder = tmp_path / "runs" / path.stem / "two_nodes" / "smoke"
    assert f"sweep logs {rows[2]['run_id']} --sweep {folder} prints that of the smoke run" in hint
    logged = sweeping.run("logs", rows[2]["run_id"], "--sweep", folder).stdout
    assert "arguments ['--lr', '0.1', '--steps', '2']" in logged
    assert "ValueError: boom" in logged
    # The mistake is corrected, and the next submission sends the cancelled runs.
    script.write_text("import sys\nprint('arguments', sys.argv[1:])\n")
    again = sweeping.run("submit", path)
    assert "submitting 2 of 4 runs (2 done, 0 queued or running)\n" in again.stdout
    wait_for(lambda: {row["state"] for row in sweeping.status()} == {"COMPLETED"}, "end", limit_s=60, pause_s=1)


def test_runs_start_after_their_smoke_run(sweeping: Sweeping, tmp_path: Path) -> None:
    path = write_sweep(tmp_path / f"{name_in(tmp_path)}.yaml", allocations=["2x1"], base=tiny_base(), seeds=[0, 1])
    sweeping.run("submit", path, "--smoke", "--wait", "--poll", "1", timeout_s=120)
    rows = sweeping.status()
    assert [(row["state"], row["steps"]) for row in rows] == [("COMPLETED", 4)] * 2
    (smoke,) = sweeping.status(tmp_path / "runs" / path.stem / "two_nodes" / "smoke")
    assert (smoke["state"], smoke["steps"], smoke["run_id"]) == ("COMPLETED", 2, rows[0]["run_id"])
    assert all(row["start_time"] >= smoke["end_time"] for row in rows)
    assert "GPU-h for 2 of 2 runs, by earlier runs of the same config" in sweeping.run("plan", path).stdout
