"""The ranks of a user's own script on the real Slurm: two nodes, its warning, and the end of a job."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import submitit

from disttrain.command.script_env import OUTPUT_NAME
from disttrain.records.lifecycle.attempt_log import ResumePolicy, read_attempts
from disttrain.records.record_files import failure_name, read_failure, read_summary
from jobs.entry import RankTask
from jobs.environ import clean_environ
from tests.jobs.sweeping import wait_for

pytestmark = pytest.mark.slurm

ALL_REDUCE = """
import json, os, torch, torch.distributed as dist
dist.init_process_group("gloo")
total = torch.ones(1)
dist.all_reduce(total)
with open(os.environ["SWEEP_METRICS"], "a") as file:
    print(json.dumps({"step": 1, "total": int(total)}), file=file)
dist.destroy_process_group()
"""
# Only rank 0 saves. The others have no handler, neither for the warning nor for SIGTERM.
SAVES = """
import json, os, signal, sys, time
from pathlib import Path
folder, rank = Path(os.environ["SWEEP_RUN_DIR"]), os.environ["RANK"]
warnings = 0
def note(number, frame):
    global warnings
    warnings += 1
if rank == "0":
    signal.signal(signal.SIGUSR2, note)
    with open(os.environ["SWEEP_METRICS"], "a") as file:
        print(json.dumps({"step": 40}), file=file)
(folder / f"ready-{rank}").touch()
while not warnings and not (folder / "saved").exists():
    time.sleep(0.05)
if rank == "0":
    time.sleep(2)
    (folder / "saved").write_text(str(warnings))
    sys.exit(85)
"""


def submit(folder: Path, text: str, resume: ResumePolicy | None = None, **run: Any) -> submitit.Job[None]:
    """Submits a run of two nodes with two ranks each; the script is given as text."""
    run_dir = folder / "run"
    run_dir.mkdir()
    (folder / "train.py").write_text(text)
    script = {"flags": "--{key} {value}", "switches": [], "launcher": "ranks", "working_dir": str(folder), **run}
    description = {"train": {"command": f"{sys.executable} train.py"}, "script": script}
    (run_dir / "run.json").write_text(json.dumps(description))
    tasks = 1 if script["launcher"] == "torchrun" else 2
    executor = submitit.SlurmExecutor(folder=folder / "logs")
    executor.update_parameters(
        nodes=2, ntasks_per_node=tasks, gpus_per_node=2, time=5, wckey=None, signal_delay_s=10,
        srun_args=["-c", "1", "--kill-on-bad-exit=1", "--wait=120", "--export=ALL"],
    )  # fmt: skip
    with clean_environ():
        return executor.submit(RankTask(str(run_dir), nodes=2, gpus_per_node=2, resume=resume))


@pytest.mark.parametrize("launcher", ["ranks", "torchrun"])
def test_a_script_on_two_nodes(launcher: str, on_slurm: Mapping[str, str], tmp_path: Path) -> None:
    job = submit(tmp_path, ALL_REDUCE, launcher=launcher)
    job.results()
    summary = read_summary(tmp_path / "run")
    assert summary is not None
    assert summary["hosts"] == ("node1", "node1", "node2", "node2")
    assert (summary["world_size"], summary["num_nodes"], summary["comparable"]) == (4, 2, True)
    assert summary["metrics"]["total"]["last"] == 4


def test_a_warned_script_saves_and_is_requeued(on_slurm: Mapping[str, str], tmp_path: Path) -> None:
    policy = ResumePolicy("slurm", 300, 10, max_timeouts=1, max_preemptions=1, max_node_failures=1)
    job = submit(tmp_path, SAVES, policy)
    run_dir = tmp_path / "run"
    output = run_dir / OUTPUT_NAME
    try:
        wait_for(lambda: len(list(output.glob("ready-*"))) == 4, "all scripts", limit_s=60)
        slurm("scancel", "--signal=USR2", job.job_id)
        wait_for(lambda: any(attempt.cause for attempt in read_attempts(run_dir)), "end of the attempt", limit_s=60)
        wait_for(lambda: "PD" in squeue(job.job_id, "%t"), "requeued job", limit_s=60)
    finally:
        slurm("scancel", job.job_id)
    (attempt,) = read_attempts(run_dir)
    assert (attempt.cause, attempt.last_step) == ("preemption", 40)
    assert (output / "saved").read_text() == "1", "the warning comes once"
    assert not list(run_dir.glob("failure-*"))


def test_a_failing_script_is_explained_by_its_log(on_slurm: Mapping[str, str], tmp_path: Path) -> None:
    text = "import os, time\nif os.environ['RANK'] == '3': raise ValueError('boom')\ntime.sleep(100)"
    job = submit(tmp_path, text)
    began_s = time.monotonic()
    wait_for(lambda: not squeue(job.job_id, "%t"), "end of the job", limit_s=60)
    assert time.monotonic() - began_s < 60
    failure = read_failure(tmp_path / "run" / failure_name(3))
    assert failure is not None
    assert (failure.error, failure.message, failure.host) == ("ValueError", "boom", "node2")


def squeue(job_id: str, form: str) -> str:
    return slurm("squeue", "--noheader", f"--jobs={job_id}", f"--format={form}")


def slurm(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout
