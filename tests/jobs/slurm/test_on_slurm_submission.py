"""The surroundings of a submission to the real Slurm: leaked variables, refusals, and ports in use."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from disttrain.environment.rank_env import port_candidates
from tests.jobs.sweeping import Sweeping, records, tiny_base, wait_for, write_sweep

pytestmark = pytest.mark.slurm

CPUS = 3
FINISH_LIMIT_S = 90.0
# Variables that a job, an impatient user or a launcher may have left in the environment of `sweep submit`.
LEAKED = {
    "SBATCH_PARTITION": "nonexistent", "SBATCH_ARRAY_INX": "0-7", "SLURM_CPU_BIND": "quiet,mask_cpu:0x1",
    "SLURM_CPUS_PER_TASK": "7", "SLURM_MEM_PER_CPU": "100", "SLURM_NTASKS_PER_NODE": "5", "SLURM_JOB_ID": "4242",
    "SLURM_PROCID": "3", "SLURM_ARRAY_TASK_ID": "5", "SLURM_STEP_GPUS": "6", "SUBMITIT_EXECUTOR": "local",
    "TORCHELASTIC_RUN_ID": "other", "RANK": "3", "LOCAL_RANK": "3", "WORLD_SIZE": "9", "MASTER_ADDR": "10.9.9.9",
    "MASTER_PORT": "1",
}  # fmt: skip
# Listens on two ports of its host: it closes every connection to the first, and never answers on the second.
LISTENER = """
import select, socket, sys
closing, silent = (socket.create_server(("", int(port))) for port in sys.argv[1:])
print("ready", flush=True)
connections = []
while True:
    for listener in select.select([closing, silent], [], [])[0]:
        connection, (address, _) = listener.accept()
        connections.append(connection) if listener is silent else connection.close()
        print("silent" if listener is silent else "closing", address, flush=True)
"""


@dataclass(frozen=True)
class SubmittedRun:
    """A 2x1 run that was submitted from inside another job, and whose first two ports were in use."""

    row: dict[str, Any]
    script: str
    environs: tuple[dict[str, str], ...]  # the environments of the ranks when srun started them
    run_dir: Path
    connections: str  # the connections to the ports in use


@pytest.fixture(scope="module")
def submitted(slurm_cluster: Mapping[str, str], tmp_path_factory: pytest.TempPathFactory) -> SubmittedRun:
    folder = tmp_path_factory.mktemp("inside")
    sweeping = Sweeping(folder, {**os.environ, **slurm_cluster})
    python = folder / "python"
    python.write_text(f'#!/bin/sh\nenv -0 > {folder}/environ-$SLURM_PROCID\nexec {shlex.quote(sys.executable)} "$@"\n')
    python.chmod(0o755)
    file = write_sweep(
        folder / "inside.yaml",
        allocations=["2x1"],
        base=tiny_base(),
        # Slurm 22.05 passes the CPUs of a task to srun by this variable of the batch shell. Without it, srun needs an
        # option.
        slurm={
            "python": str(python), "cpus_per_gpu": CPUS, "sbatch": {"hold": True},
            "setup": ["unset SLURM_CPUS_PER_TASK"],
        },
    )  # fmt: skip
    leaked = [f"{name}={value}" for name, value in LEAKED.items()]
    submit = sweeping.command("submit", file)
    sweeping.outside("srun", "--job-name=outer", "-N1", "-n1", "-c2", "--nodelist=node2", "env", *leaked, *submit)
    (row,) = sweeping.status()
    job_id = row["job_id"]
    try:
        script = sweeping.outside("scontrol", "write", "batch_script", job_id, "-")
        with listening_on_node1(port_candidates(f"{job_id}.0/0")[:2], folder / "connections"):
            sweeping.outside("scontrol", "release", job_id)
            (row,) = wait_for(
                lambda: [row for row in sweeping.status() if row["end_time"]], "end of the job", limit_s=FINISH_LIMIT_S
            )
    finally:
        subprocess.run(["scancel", job_id], env=sweeping.environ, check=False)
    return SubmittedRun(
        row=row,
        script=script,
        environs=tuple(_read_environ(folder / f"environ-{rank}") for rank in range(2)),
        run_dir=folder / "runs" / "inside" / "two_nodes" / "runs" / row["run_id"],
        connections=(folder / "connections").read_text(),
    )


def _read_environ(path: Path) -> dict[str, str]:
    entries = path.read_text().split("\0")
    return dict(entry.split("=", 1) for entry in entries if entry)


@contextmanager
def listening_on_node1(ports: tuple[int, ...], log: Path) -> Iterator[None]:
    """Another process listens on these two ports of node1 in the meantime."""
    command = ["ip", "netns", "exec", "sweeptest-node1", sys.executable, "-c", LISTENER, *map(str, ports)]
    with log.open("w") as file, subprocess.Popen(command, stdout=file) as process:
        try:
            wait_for(log.read_text, "listener on node1", limit_s=10)
            yield
        finally:
            process.kill()


def test_leaked_variables_have_no_effect(submitted: SubmittedRun) -> None:
    row = submitted.row
    assert (row["state"], row["reason"], row["hosts"], row["backend"]) == (
        "COMPLETED",
        None,
        ["node1", "node2"],
        "gloo",
    )
    assert "#SBATCH --partition=gpu" in submitted.script
    assert "--array" not in submitted.script
    for rank, environ in enumerate(submitted.environs):
        assert environ["SLURM_JOB_ID"] == row["job_id"]
        assert (environ["SLURM_JOB_PARTITION"], environ["SLURM_PROCID"]) == ("gpu", str(rank))
        assert environ["SUBMITIT_EXECUTOR"] == "slurm"
        assert not {"RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"} & environ.keys()
        assert not {"SBATCH_PARTITION", "SLURM_ARRAY_TASK_ID", "SLURM_MEM_PER_CPU", "TORCHELASTIC_RUN_ID"} & (
            environ.keys()
        )
        assert LEAKED["SLURM_CPU_BIND"] not in environ.get("SLURM_CPU_BIND", "")
        assert environ["SLURM_STEP_GPUS"] != LEAKED["SLURM_STEP_GPUS"]


def test_srun_gets_cpus_per_rank(submitted: SubmittedRun) -> None:
    for environ in submitted.environs:
        assert (environ["SLURM_CPUS_PER_TASK"], environ["SLURM_CPUS_ON_NODE"]) == (str(CPUS), str(CPUS))
    (start,) = records(submitted.run_dir, 0, "start")
    assert start["threads"] == min(CPUS, os.cpu_count() or 1)


def test_skips_ports_in_use(submitted: SubmittedRun) -> None:
    assert submitted.row["state"] == "COMPLETED"
    # Rank 1, on node2, tried both ports in their order, and neither answered for this job.
    assert submitted.connections.splitlines()[:3] == [
        "ready",
        "closing ::ffff:10.77.0.12",
        "silent ::ffff:10.77.0.12",
    ] or (submitted.connections.splitlines()[:3] == ["ready", "closing 10.77.0.12", "silent 10.77.0.12"])


def test_corrected_submission_after_a_refusal(slurm_cluster: Mapping[str, str], tmp_path: Path) -> None:
    sweeping = Sweeping(tmp_path, {**os.environ, **slurm_cluster})
    sections: dict[str, Any] = {"allocations": ["1x1", "2x2"], "base": tiny_base(), "seeds": [0, 1]}
    name = f"refused-{os.getpid()}"
    wrong = write_sweep(tmp_path / f"{name}.yaml", **sections, slurm={"partition": "nonexistent"})
    done = sweeping.run("submit", wrong, exit_code=2)
    assert done.stdout == f"{name} on two_nodes: submitting 4 of 4 runs\n"
    assert done.stderr == (
        "error: cluster 'two_nodes': sbatch refused 2 runs of 1x1: invalid partition specified: nonexistent; Batch job"
        " submission failed: Invalid partition name specified (sweep plan --scripts shows what was submitted)\n"
    )
    ledger_file = tmp_path / "runs" / name / "two_nodes" / "ledger.jsonl"
    intended, given_up = (json.loads(line) for line in ledger_file.read_text().splitlines())
    assert (intended["event"], given_up["event"]) == ("intend", "give_up")
    assert intended["run_ids"] == given_up["run_ids"]
    assert "Invalid partition name specified" in given_up["reason"]
    assert sweeping.outside("squeue", "-h", f"--name={name}") == ""
    assert [row["state"] for row in sweeping.status()] == ["NOT_SUBMITTED"] * 4

    # Submitted on hold, so that no run starts.
    write_sweep(wrong, **sections, slurm={"sbatch": {"hold": True}})
    try:
        assert sweeping.run("submit", wrong).stdout.startswith(f"{name} on two_nodes: submitting 4 of 4 runs\n")
        queued = sweeping.outside("squeue", "-h", "-r", f"--name={name}", "-o", "%i").split()
        rows = sweeping.status()
        assert sorted(row["job_id"] for row in rows) == sorted(queued)
        assert {row["run_id"] for row in rows[:2]} == set(intended["run_ids"])
        again = sweeping.run("submit", wrong).stdout
        assert again.startswith(f"{name} on two_nodes: submitting 0 of 4 runs (0 done, 4 queued or running)\n")
    finally:
        sweeping.outside("scancel", f"--name={name}")
    # sacct may never list the tasks of an array that is cancelled so soon; a minute later they must not be pending.
    rows = wait_for(lambda: _if_all_cancelled(sweeping), "end of all runs", limit_s=90)
    assert {(row["reason"], row["start_time"], row["gpu_hours"]) for row in rows} == {("cancelled", None, 0.0)}


def _if_all_cancelled(sweeping: Sweeping) -> list[dict[str, Any]]:
    rows = sweeping.status()
    return rows if all(row["state"] == "CANCELLED" for row in rows) else []
