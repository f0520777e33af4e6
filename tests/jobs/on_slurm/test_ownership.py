"""On the real Slurm: which jobs are ours, and what became of jobs that sacct or squeue do not list."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.jobs.sweeping import OTHER_HOST, Sweeping, tiny_base, wait_for, write_sweep

pytestmark = pytest.mark.slurm

BETWEEN = "as another user:"
# Runs a command twice: the first time imports what another user may not be able to read, as in a private home.
AS_ANOTHER_USER = f"""
import os, sys
from jobs.cli import main

def run():
    try:
        main()
    except SystemExit as ended:
        assert not ended.code

run()
print("{BETWEEN}")
os.setgroups([])
os.setgid(65534)
os.setuid(65534)
run()
"""
HELD = {"sbatch": {"hold": True}}


@pytest.fixture
def sweeping(slurm_cluster: Mapping[str, str], tmp_path: Path) -> Iterator[Sweeping]:
    sweeping = Sweeping(tmp_path, {**os.environ, **slurm_cluster})
    yield sweeping
    subprocess.run(["scancel", f"--name={name_in(tmp_path)}"], env=sweeping.environ, check=False)


def name_in(folder: Path) -> str:
    return f"own-{folder.name}"


def test_a_task_that_is_cancelled_while_it_waits(sweeping: Sweeping, tmp_path: Path) -> None:
    """sacct lists the waiting rest of the array, with the cancelled task, for as long as the rest waits."""
    file = write_sweep(
        tmp_path / f"{name_in(tmp_path)}.yaml", allocations=["1x1"], base=tiny_base(), seeds=[0, 1, 2], slurm=HELD
    )
    sweeping.run("submit", file)
    rows = wait_for(lambda: [row for row in sweeping.status() if row["submit_time"]], "rows of sacct", limit_s=30)
    assert [row["state"] for row in rows] == ["PENDING"] * 3
    for row in rows:
        assert row["reason"] == (f"waits (JobHeldUser): it is held; scontrol release {row['job_id']} starts it")
    sweeping.outside("scancel", rows[1]["job_id"])
    states = wait_for(
        lambda: [found for found in [[row["state"] for row in sweeping.status()]] if "CANCELLED" in found],
        "cancelled run",
        limit_s=90,
    )
    assert states == [["PENDING", "CANCELLED", "PENDING"]]
    assert "submitting 1 of 3 runs (0 done, 2 queued or running)" in sweeping.run("submit", file).stdout
    assert [row["state"] for row in sweeping.status()] == ["PENDING"] * 3
    ledger = (tmp_path / "runs" / file.stem / "two_nodes" / "ledger.jsonl").read_text().splitlines()
    config = sweeping.outside("scontrol", "show", "config")
    name = next(line.split("=")[1].strip() for line in config.splitlines() if line.startswith("ClusterName"))
    assert {json.loads(line).get("cluster") for line in ledger} == {None, name}


def test_runs_end_without_sacct(sweeping: Sweeping, tmp_path: Path) -> None:
    """squeue says what waits and runs, and the runs' own files what has ended."""
    (tmp_path / "bin").mkdir()
    sacct = tmp_path / "bin" / "sacct"
    sacct.write_text(
        "#!/bin/sh\necho 'sacct: error: Problem talking to the database: Connection refused' >&2\nexit 1\n"
    )
    sacct.chmod(0o755)
    sweeping.environ = {**sweeping.environ, "PATH": f"{tmp_path / 'bin'}:{sweeping.environ['PATH']}"}
    file = write_sweep(
        tmp_path / f"{name_in(tmp_path)}.yaml", allocations=["1x1"], base=tiny_base(), seeds=[0, 1], slurm={}
    )
    runs = tmp_path / "runs" / file.stem / "two_nodes" / "runs"
    done = sweeping.run("submit", file, "--wait", "--poll", "1", timeout_s=150)
    assert "Problem talking to the database" in done.stderr + done.stdout
    rows = sweeping.status()
    assert [row["state"] for row in rows] == ["COMPLETED", "COMPLETED"]
    assert {row["state_source"] for row in rows} <= {"squeue", "records"}
    assert all(row["samples_per_s"] for row in rows)
    assert len(list(runs.glob("*/summary.json"))) == 2
    assert "submitting 0 of 2 runs (2 done, 0 queued" in sweeping.run("submit", file).stdout


def test_a_reader_that_leaves_does_not_stop_a_submission(sweeping: Sweeping, tmp_path: Path) -> None:
    """sweep submit | head -1"""
    file = write_sweep(
        tmp_path / f"{name_in(tmp_path)}.yaml", allocations=["1x1", "2x1", "2x2"], base=tiny_base(), slurm=HELD
    )
    command = " ".join([*sweeping.command("submit", file), "2>&1 | head -1"])
    first = sweeping.outside("bash", "-c", command)
    assert first.endswith("submitting 3 of 3 runs\n")
    rows = wait_for(
        lambda: [row for row in sweeping.status() if row["state"] != "NOT_SUBMITTED"], "submitted runs", limit_s=30
    )
    assert len(rows) == 3


def test_two_submits_at_once_from_two_hosts(sweeping: Sweeping, tmp_path: Path) -> None:
    """Two hosts that share the folder: each has its own name and its own process ids."""
    file = write_sweep(
        tmp_path / f"{name_in(tmp_path)}.yaml", allocations=["1x1", "2x1"], base=tiny_base(), seeds=[0, 1], slurm={}
    )
    command = sweeping.command("submit", file)
    submits = [
        subprocess.Popen([*host, *command], cwd=tmp_path, env=sweeping.environ, stderr=subprocess.PIPE, text=True)
        for host in ([], OTHER_HOST)
    ]
    errors = [submit.communicate(timeout=60)[1] for submit in submits]
    codes = [submit.returncode for submit in submits]
    assert min(codes) == 0, errors
    for code, error in zip(codes, errors, strict=True):
        assert code == 0 or (code == 2 and "another sweep command is running in" in error), error
    rows = wait_for(
        lambda: [found for found in [sweeping.status()] if all(row["state"] == "COMPLETED" for row in found)],
        "end of all runs",
        limit_s=150,
    )[0]
    assert [row["attempts"] for row in rows] == [1] * 4
    name = f"--name={file.stem}"
    jobs = sweeping.outside("sacct", "-X", "-n", "-P", "-S", "now-1hour", name, "-o", "JobID").split()
    assert sorted(jobs) == sorted(row["job_id"] for row in rows)


@pytest.fixture
def private_jobs(sweeping: Sweeping) -> Iterator[None]:
    """A site where users see their own jobs only."""
    conf = Path(sweeping.environ["SLURM_CONF"])
    before = conf.read_text()
    conf.write_text(f"{before}\nPrivateData=jobs\n")
    sweeping.outside("scontrol", "reconfigure")
    yield
    conf.write_text(before)
    sweeping.outside("scontrol", "reconfigure")


def test_another_user_may_not_see_the_jobs(sweeping: Sweeping, private_jobs: None, tmp_path: Path) -> None:
    """squeue and sacct answer without rows and without an error: the runs are not CANCELLED."""
    file = write_sweep(tmp_path / f"{name_in(tmp_path)}.yaml", allocations=["1x1"], base=tiny_base(), slurm=HELD)
    with tempfile.TemporaryDirectory() as root:  # pytest's folders are closed to other users
        sweeping.run("submit", file, "--root", root)
        folder = Path(root) / file.stem / "two_nodes"
        for path in (Path(root), folder):
            path.chmod(0o755)
        assert [row["state"] for row in sweeping.status(folder)] == ["PENDING"]
        reader = [sys.executable, "-c", AS_ANOTHER_USER, "status", str(folder), "--json"]

        def hidden() -> list[str]:
            rows = json.loads(sweeping.outside(*reader).partition(BETWEEN)[2])["runs"]
            return [f"{row['state']}: {row['reason']}" for row in rows if row["state"] != "PENDING"]

        # A list may lack a job in its first minute.
        assert wait_for(hidden, "another state", limit_s=90) == ["UNKNOWN: its job is not visible to you"]
