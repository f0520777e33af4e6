"""Runs with a failed rank on the real Slurm: they end soon, report the reason, and leave no process."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from tests.jobs.sweeping import END_LIMIT_S, Sweeping, processes_with, records, tiny_base, wait_for, write_sweep

pytestmark = pytest.mark.slurm

# The seeds of the runs. All but the last are also the indices of the runs in their array.
RAISES, KILLED, BROKEN_TORCH, CANCELLED, NO_GPU = range(5)
TWO_NODES = (RAISES, KILLED, BROKEN_TORCH, CANCELLED)
START_LIMIT_S = 90.0


@dataclass(frozen=True)
class Ended:
    """The runs after their end."""

    sweeping: Sweeping
    folder: Path
    rows: dict[int, dict[str, Any]]  # the rows of the status by seed
    no_gpu: dict[str, Any]  # the row of the run with device: auto
    failed_s: dict[int, float]  # the time of the rank's failure by seed
    ended_s: dict[int, float]  # the time of the end of the last process by seed

    def run_dir(self, seed: int) -> Path:
        return self.folder / "runs" / str(self.rows[seed]["run_id"])


def interpreter(folder: Path) -> Path:
    """A Python for the compute nodes that cannot load torch on node2, in one run of the array."""
    (folder / "broken").mkdir()
    (folder / "broken" / "torch.py").write_text(
        "raise ImportError('libcudart.so.99: cannot open shared object file')\n"
    )
    script = folder / "python"
    script.write_text(
        "#!/bin/sh\n"
        f'if [ "$SLURM_ARRAY_TASK_ID" = {BROKEN_TORCH} ] && [ "$SLURM_PROCID" = 1 ]; then\n'
        f"    export PYTHONPATH={shlex.quote(str(folder / 'broken'))}\n"
        "fi\n"
        f'exec {shlex.quote(sys.executable)} "$@"\n'
    )
    script.chmod(0o755)
    return script


@pytest.fixture(scope="module")
def ended(slurm_cluster: Mapping[str, str], tmp_path_factory: pytest.TempPathFactory) -> Ended:
    """Submits endless runs on hold, releases them, makes each fail in its own way, and waits for their ends."""
    folder = tmp_path_factory.mktemp("failures")
    mark = f"TEST_OF_FAILURES={folder}"  # an environment variable that every process of the jobs inherits
    sweeping = Sweeping(folder, {**os.environ, **slurm_cluster, "TEST_OF_FAILURES": str(folder)})
    file = write_sweep(
        folder / "failures.yaml",
        allocations=["2x1"],
        base=tiny_base(max_steps=10_000_000),
        seeds=list(TWO_NODES),
        include=[{"allocation": "1x1", "device": "auto", "seed": NO_GPU}],
        slurm={"python": str(interpreter(folder)), "sbatch": {"hold": True}},
    )
    sweeping.run("submit", file)
    sweep_dir = folder / "runs" / "failures" / "two_nodes"
    rows = {row["seed"]: row for row in sweeping.status()}
    run_dirs = {seed: sweep_dir / "runs" / row["run_id"] for seed, row in rows.items()}
    arrays = {row["job_id"].split("_")[0] for row in rows.values()}
    try:
        # Only rank 1 cannot open its records.
        (run_dirs[RAISES] / "metrics-rank00001.jsonl").mkdir()
        sweeping.outside("scontrol", "release", *arrays)
        failed_s, ended_s = _fail_runs(sweeping, mark, rows, run_dirs)
        wait_for(
            lambda: all(row["end_time"] for row in sweeping.status()), "end of each run in sacct", limit_s=END_LIMIT_S
        )
    finally:
        subprocess.run(["scancel", *arrays], env=sweeping.environ, check=False)
    rows = {row["seed"]: row for row in sweeping.status()}
    return Ended(sweeping, sweep_dir, rows, rows.pop(NO_GPU), failed_s, ended_s)


def _fail_runs(
    sweeping: Sweeping, mark: str, rows: Mapping[int, Mapping[str, Any]], run_dirs: Mapping[int, Path]
) -> tuple[dict[int, float], dict[int, float]]:
    """Makes the running runs fail, and returns when each rank failed and when all processes of each run had ended."""
    failed_s: dict[int, float] = {}
    ended_s: dict[int, float] = {}

    def all_ended() -> bool:
        if KILLED not in failed_s and records(run_dirs[KILLED], 1, "step"):
            (start,) = records(run_dirs[KILLED], 1, "start")
            failed_s[KILLED] = time.time()
            os.kill(start["pid"], signal.SIGKILL)
        if CANCELLED not in failed_s and records(run_dirs[CANCELLED], 1, "step"):
            failed_s[CANCELLED] = time.time()
            sweeping.outside("scancel", rows[CANCELLED]["job_id"])
        for seed in set(TWO_NODES) - ended_s.keys():
            failure = run_dirs[seed] / "failure-rank00001.json"
            if failure.exists() and seed not in failed_s:
                failed_s[seed] = json.loads(failure.read_text())["time_s"]
            array, task = rows[seed]["job_id"].split("_")
            if seed in failed_s and not processes_with(
                mark, f"SLURM_ARRAY_JOB_ID={array}", f"SLURM_ARRAY_TASK_ID={task}"
            ):
                ended_s[seed] = time.time()
        return len(ended_s) == len(TWO_NODES)

    wait_for(all_ended, "end of all processes", limit_s=START_LIMIT_S)
    return failed_s, ended_s


@pytest.mark.parametrize("seed", TWO_NODES, ids=["raises", "killed", "before the group", "cancelled"])
def test_run_ends_within_30_s(ended: Ended, seed: int) -> None:
    row = ended.rows[seed]
    assert (row["state"], row["attempts"]) == ("CANCELLED" if seed == CANCELLED else "FAILED", 1)
    assert (row["exit_code"] == 0) == (seed == CANCELLED)
    assert datetime.fromisoformat(row["end_time"]).timestamp() - ended.failed_s[seed] < END_LIMIT_S
    # No process of the job remains on either node, also no data worker and no process of submitit.
    assert ended.ended_s[seed] - ended.failed_s[seed] < END_LIMIT_S


def test_reason_is_the_first_rank_to_fail(ended: Ended) -> None:
    records_file = ended.run_dir(RAISES) / "metrics-rank00001.jsonl"
    # The new file could not replace the directory.
    assert ended.rows[RAISES]["reason"].startswith("rank 1 on node2: IsADirectoryError: [Errno 21] Is a directory: ")
    assert ended.rows[RAISES]["reason"].endswith(f"-> '{records_file}'")
    # This failure comes before the process group exists: rank 0 waits for the other ranks, and Slurm has to end it.
    assert ended.rows[BROKEN_TORCH]["reason"] == (
        "rank 1 on node2: ImportError: libcudart.so.99: cannot open shared object file"
    )
    assert not (ended.run_dir(BROKEN_TORCH) / "failure-rank00000.json").exists()


def test_status_names_traceback_and_log(ended: Ended) -> None:
    output = ended.sweeping.run("status", "--check", exit_code=1).stdout
    for seed in (RAISES, BROKEN_TORCH):
        row = ended.rows[seed]
        failure = ended.run_dir(seed) / "failure-rank00001.json"
        log = ended.folder / "logs" / f"{row['job_id']}_1_log.err"
        name = f"{row['run_id']} ({row['label']})"
        assert f"{name}  FAILED: {row['reason']}\n    traceback in {failure}\n    log in {log}\n" in output
        traceback = json.loads(failure.read_text())["traceback"]
        assert traceback.startswith("Traceback (most recent call last):\n")
        assert traceback.splitlines()[-1] in log.read_text()


def test_reason_after_a_killed_rank(ended: Ended) -> None:
    # The killed rank cannot report anything, and rank 0 at most that it lost its connection. srun's log has the reason.
    assert ended.rows[KILLED]["reason"] == (
        "rank 1 on node2 was killed by SIGKILL: from outside, or because its node had no memory left"
    )
    assert not (ended.run_dir(KILLED) / "failure-rank00001.json").exists()
    assert ended.rows[KILLED]["steps"] > 0
    assert ended.rows[KILLED]["samples_per_s"] is None


def test_cancelled_run_has_no_failure_reason(ended: Ended) -> None:
    # Its ranks end on SIGTERM. submitit's own handler would ignore it, until SIGKILL 30 s later.
    assert ended.ended_s[CANCELLED] - ended.failed_s[CANCELLED] < 20
    # One rank may still report that it lost the other: this is not the reason.
    assert ended.rows[CANCELLED]["reason"] == "cancelled by root"


def test_torch_sees_no_allocated_gpus(ended: Ended) -> None:
    row = ended.no_gpu
    assert (row["state"], row["exit_code"], row["allocation"]) == ("FAILED", 1, "1x1")
    assert re.fullmatch(
        r"rank 0 on (node[12]): UserError: GPUs were allocated, but torch \S+ sees no GPU on \1"
        r" \(check the driver and the build of torch, or set device: cpu\)",
        row["reason"],
    )


def test_second_submit_submits_failed_runs(ended: Ended) -> None:
    """The sweep submits its runs on hold, so nothing runs; the test cancels the queued jobs."""
    (ended.run_dir(RAISES) / "metrics-rank00001.jsonl").rmdir()
    output = ended.sweeping.run("submit", ended.folder / "sweep.yaml").stdout
    try:
        assert output.startswith("failures on two_nodes: submitting 5 of 5 runs\n")
        rows = ended.sweeping.status()
        assert [(row["state"], row["exit_code"]) for row in rows] == [("PENDING", None)] * 5
        assert all("it is held; scontrol release" in row["reason"] for row in rows)
        assert not list(ended.folder.glob("runs/*/failure-rank*.json"))
    finally:
        ended.sweeping.outside("scancel", "--name=failures")
