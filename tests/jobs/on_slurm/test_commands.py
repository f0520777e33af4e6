"""On the real Slurm: runs that wait are replaced, runs are cancelled, sent again and repeated."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.jobs.sweeping import Sweeping, by_run, records, tiny_base, wait_for, write_sweep

pytestmark = pytest.mark.slurm


@pytest.fixture
def sweeping(slurm_cluster: Mapping[str, str], tmp_path: Path) -> Iterator[Sweeping]:
    sweeping = Sweeping(tmp_path, {**os.environ, **slurm_cluster})
    yield sweeping
    subprocess.run(["scancel", f"--name={name_in(tmp_path)}"], env=sweeping.environ, check=False)


@pytest.fixture
def short_partition(sweeping: Sweeping) -> Iterator[str]:
    """A partition with a time limit of 2 minutes."""
    name = f"short{os.getpid()}"
    sweeping.outside("scontrol", "create", f"partition={name}", "Nodes=ALL", "MaxTime=2")
    yield name
    wait_for(
        lambda: subprocess.run(
            ["scontrol", "delete", f"partition={name}"], env=sweeping.environ, check=False
        ).returncode == 0,
        "end of the jobs in the partition",
        limit_s=60,
    )  # fmt: skip


def name_in(folder: Path) -> str:
    return f"commands-{folder.name}"


def states(sweeping: Sweeping) -> list[str]:
    return [row["state"] for row in sweeping.status()]


def test_runs_that_would_wait_for_ever_are_replaced(sweeping: Sweeping, short_partition: str, tmp_path: Path) -> None:
    """sbatch accepts a time over the limit of the partition; the user mends the file and submits again."""
    path = tmp_path / f"{name_in(tmp_path)}.yaml"
    sections = {"allocations": ["1x1"], "base": tiny_base(), "seeds": [0, 1]}
    write_sweep(path, **sections, slurm={"partition": short_partition, "time": "10"})
    sweeping.run("submit", path)
    reasons = wait_for(lambda: [row["reason"] for row in sweeping.status() if row["reason"]], "reasons", limit_s=30)
    never = "waits (PartitionTimeLimit): it will never start, because its time limit is over that of its partition"
    assert set(reasons) == {never}
    before = [row["job_id"] for row in sweeping.status()]
    write_sweep(path, **sections, slurm={"partition": short_partition, "time": "2"})
    noted = sweeping.run("submit", path)
    assert "submitting 0 of 2 runs (0 done, 2 queued or running)" in noted.stdout
    assert "note: 2 runs wait with another request than the sweep has now (time 10, now 2): " in noted.stderr
    replaced = sweeping.run("submit", path, "--replace")
    assert "note: cancelled 2 runs that waited with another request: " in replaced.stderr
    assert "submitting 2 of 2 runs\n" in replaced.stdout
    waited = sweeping.run("wait", "--poll", "1", timeout_s=120)
    assert "2 COMPLETED" in waited.stdout
    now = [row["job_id"] for row in sweeping.status()]
    assert not set(before) & set(now)
    started = sweeping.outside("sacct", "-nPX", "-j", before[0].partition("_")[0], "-o", "State,NodeList")
    assert all("CANCELLED" in row and "None" in row for row in started.splitlines()), started


@pytest.fixture
def job_limit(sweeping: Sweeping) -> Iterator[int]:
    """The limit of jobs that this user may have, for this test."""

    def limit(number: int) -> None:
        sweeping.outside("sacctmgr", "-i", "modify", "user", "root", "set", f"MaxSubmitJobs={number}")

    limit(3)
    yield 3
    limit(-1)


def test_more_runs_than_the_user_may_have(sweeping: Sweeping, job_limit: int, tmp_path: Path) -> None:
    """Slurm refuses an array that is over the limit as a whole. The rest is sent when runs have ended."""
    path = tmp_path / f"{name_in(tmp_path)}.yaml"
    write_sweep(path, allocations=["1x1"], base=tiny_base(max_steps=2), seeds=list(range(7)))
    done = sweeping.run("submit", path, "--wait", "--poll", "1", timeout_s=200)
    assert "4 runs wait for the limit of jobs that Slurm accepts (AssocMaxSubmitJobLimit); " in done.stderr
    assert "7 runs, 7 COMPLETED" in done.stdout
    rows = sweeping.status()
    jobs = sweeping.outside("sacct", "-nPX", f"--name={path.stem}", "-S", "now-1hour", "-o", "JobID").split()
    assert sorted(jobs) == sorted(row["job_id"] for row in rows)
    assert len(set(jobs)) == 7


def test_a_run_is_cancelled_sent_again_and_repeated(sweeping: Sweeping, tmp_path: Path) -> None:
    path = tmp_path / f"{name_in(tmp_path)}.yaml"
    base = tiny_base(max_steps=60, checkpoint_every=1, timing_warmup_steps=1)
    write_sweep(path, allocations=["1x1"], base=base, seeds=[0, 1, 2], slurm={"max_running": 2})
    sweeping.run("submit", path, "max_steps=100000")
    folder = tmp_path / "runs" / path.stem / "two_nodes"
    first, second, waiting = [row["run_id"] for row in sweeping.status()]
    for run_id in (first, second):
        wait_for(lambda run_id=run_id: records(folder / "runs" / run_id, 0, "checkpoint"), "checkpoint", limit_s=90)  # type: ignore[misc]
    assert sweeping.run("cancel", "--all", exit_code=2).stderr == (
        "error: sweep cancel --all asks first, and stdin is not a terminal (add --yes)\n"
    )
    cancelled = sweeping.run("cancel", first, waiting)
    assert cancelled.stdout.startswith(f"cancelled 2 runs: {first} (1x1 seed=0), {waiting} (1x1 seed=2); ")
    wait_for(lambda: states(sweeping) == ["CANCELLED", "RUNNING", "CANCELLED"], "end of two runs", limit_s=60)
    again = sweeping.run("submit", path, "max_steps=100000")
    assert "submitting 0 of 3 runs (0 done, 1 queued or running)" in again.stdout
    assert "note: 2 runs were cancelled by sweep cancel; sweep retry sends them again" in again.stderr
    # The file loses the third seed and the --set: all three runs are dropped, and the second still runs.
    write_sweep(path, allocations=["1x1"], base=base, seeds=[0])
    dropped = sweeping.run("submit", path, "max_steps=3")
    assert "submitting 1 of 1 run\n" in dropped.stdout
    assert "note: 1 of the dropped runs still waits or runs; sweep cancel --dropped ends it" in dropped.stderr
    # The file still has the first run, with its --set.
    waited = sweeping.run("wait", "--poll", "1", timeout_s=120, exit_code=1)
    assert "2 runs, 1 CANCELLED, 1 COMPLETED" in waited.stdout
    assert f"{first} (1x1 seed=0 max_steps=100000)  CANCELLED: cancelled by sweep cancel; " in waited.stdout
    sweeping.run("cancel", "--dropped")
    wait_for(lambda: sorted(states(sweeping)) == ["CANCELLED"] * 3 + ["COMPLETED"], "end of all runs", limit_s=60)
    # Resumed: the first step of the retry comes after the last checkpoint.
    saved = max(record["step"] for record in records(folder / "runs" / second, 0, "checkpoint"))
    sweeping.run("retry", second)
    steps = wait_for(
        lambda: [r for r in records(folder / "runs" / second, 0, "step") if r["step"] > saved], "steps", limit_s=90
    )
    assert steps[0]["step"] == saved + 1
    sweeping.run("cancel", second)
    wait_for(lambda: sorted(states(sweeping)) == ["CANCELLED"] * 3 + ["COMPLETED"], "end of all runs", limit_s=60)


def test_a_repeated_run_keeps_its_earlier_result(sweeping: Sweeping, tmp_path: Path) -> None:
    path = tmp_path / f"{name_in(tmp_path)}.yaml"
    write_sweep(path, allocations=["2x1"], base=tiny_base(), slurm={"2x1": {"time": "3"}})
    sweeping.run("submit", path, "--wait", "--poll", "1", timeout_s=120)
    folder = tmp_path / "runs" / path.stem / "two_nodes"
    (before,) = sweeping.status()
    sweeping.run("rerun", "2x1")
    sweeping.run("wait", "--poll", "1", timeout_s=120)
    (after,) = sweeping.status()
    assert (after["state"], after["attempts"], before["job_id"] != after["job_id"]) == ("COMPLETED", 2, True)
    run_dir = folder / "runs" / after["run_id"]
    earlier, latest = (json.loads((path / "summary.json").read_text()) for path in (run_dir / "earlier" / "1", run_dir))
    assert earlier["train_loss"] == latest["train_loss"]
    limits = sweeping.outside("sacct", "-nPX", "-j", f"{before['job_id']},{after['job_id']}", "-o", "TimelimitRaw")
    assert limits.split() == ["3", "3"]
    hours = sweeping.outside("sacct", "-nPX", "-j", f"{before['job_id']},{after['job_id']}", "-o", "ElapsedRaw")
    assert after["gpu_hours"] == pytest.approx(sum(map(int, hours.split())) * 2 / 3600, abs=1e-5)


def test_a_log_is_followed_and_a_retry_goes_to_the_other_node(sweeping: Sweeping, tmp_path: Path) -> None:
    path = tmp_path / f"{name_in(tmp_path)}.yaml"
    write_sweep(path, allocations=["1x1"], base=tiny_base(max_steps=60), seeds=[0, 1])
    sweeping.run("submit", path)
    first, second = [row["run_id"] for row in sweeping.status()]
    followed = sweeping.run("logs", first, "--follow", timeout_s=150)
    assert "step 60/60  loss " in followed.stdout
    logs = tmp_path / "runs" / path.stem / "two_nodes" / "logs"
    job_id = by_run(sweeping.status())[first]["job_id"]
    assert followed.stdout.startswith(f"==> {logs}/{job_id}_0_log.out <==\n")
    wait_for(lambda: states(sweeping) == ["COMPLETED"] * 2, "end of both runs", limit_s=60)
    # The second run is sent again on one node, and cancelled; its retry may not use that node.
    sweeping.run("submit", path, "max_steps=100000")
    endless = next(row["run_id"] for row in sweeping.status() if row["max_steps"] == 100000)
    wait_for(lambda: by_run(sweeping.status())[endless]["state"] == "RUNNING", "start", limit_s=60)
    sweeping.run("cancel", endless)
    wait_for(lambda: by_run(sweeping.status())[endless]["state"] == "CANCELLED", "end", limit_s=60)
    refused = sweeping.run("retry", endless, "--exclude", "node99", exit_code=2).stderr
    assert "sbatch refused 1 runs of 1x1: " in refused
    sent = sweeping.run("retry", endless, "--exclude", "node1", "--time", "5", "--state", "cancelled").stdout
    assert "runs again, with --time 5 --exclude node1\n" in sent
    wait_for(lambda: by_run(sweeping.status())[endless]["state"] == "RUNNING", "start of the retry", limit_s=60)
    job = sweeping.outside("scontrol", "show", "job", by_run(sweeping.status())[endless]["job_id"])
    for value in ("ExcNodeList=node1\n", "TimeLimit=00:05:00", " NodeList=node2\n"):
        assert value in job
    assert second in sweeping.run("clean", timeout_s=90).stdout
