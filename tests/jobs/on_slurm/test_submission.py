"""The surroundings of a submission to the real Slurm: leaked variables, refusals, and ports in use."""

from __future__ import annotations

import json
import os
import pwd
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
    "MASTER_PORT": "1", "SLURM_GPUS_PER_NODE": "2", "SLURM_TIMELIMIT": "1", "SLURM_EXPORT_ENV": "NONE",
    "SBATCH_MEM_BIND": "local", "OMPI_COMM_WORLD_RANK": "3", "OMPI_COMM_WORLD_SIZE": "9", "PMI_RANK": "3",
}  # fmt: skip
# The user's own: what profile and sweep do not decide holds, inside another job too.
OWN = {"SBATCH_ACCOUNT": "proj-a", "SBATCH_NO_REQUEUE": "1", "MY_TOKEN": "a b", "NCCL_DEBUG": "WARN"}
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


@pytest.fixture(scope="module", autouse=True)
def project(slurm_cluster: Mapping[str, str]) -> None:
    """The account proj-a, next to the default account of root."""
    for command in (["account", "proj-a"], ["user", "root", "account=proj-a"]):
        # It exists after the first test run: the exit status is then 1.
        environ = {**os.environ, **slurm_cluster}
        subprocess.run(["sacctmgr", "-i", "add", *command], env=environ, capture_output=True, check=False)


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
    leaked = [f"{name}={value}" for name, value in {**LEAKED, **OWN}.items()]
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


def test_the_users_variables_hold(submitted: SubmittedRun) -> None:
    assert "#SBATCH --account=proj-a" in submitted.script
    for environ in submitted.environs:
        assert environ["SLURM_JOB_ACCOUNT"] == "proj-a"
        assert OWN.items() <= environ.items()


@pytest.mark.parametrize(
    ("own", "shown"),
    [
        (
            {
                "SBATCH_ACCOUNT": "proj-a",
                "SBATCH_TIMELIMIT": "7",
                "SBATCH_PARTITION": "preempt",
                "SBATCH_NO_REQUEUE": "1",
            },
            {"Account": "proj-a", "TimeLimit": "00:10:00", "Partition": "gpu", "Requeue": "0", "JobName": "own"},
        ),
        # What would contradict the plan: the job starts with them, or never.
        (
            {
                "SBATCH_ARRAY_INX": "0-7",
                "SBATCH_GPUS": "9",
                "SBATCH_JOB_NAME": "x",
                "SBATCH_WAIT": "1",
                "SLURM_GPUS": "9",
            },
            {"Account": "root", "TimeLimit": "00:10:00", "Partition": "gpu", "Requeue": "1", "JobName": "own"},
        ),
    ],
    ids=["defaults", "contradictions"],
)
def test_variables_of_a_login_shell(
    own: dict[str, str], shown: dict[str, str], slurm_cluster: Mapping[str, str], tmp_path: Path
) -> None:
    sweeping = Sweeping(tmp_path, {**os.environ, **slurm_cluster, **own})
    file = write_sweep(tmp_path / "own.yaml", allocations=["1x1"], base=tiny_base(), slurm={"sbatch": {"hold": True}})
    sweeping.run("submit", file)
    (row,) = sweeping.status()
    job = sweeping.outside("scontrol", "show", "job", row["job_id"])
    sweeping.outside("scancel", row["job_id"])
    assert "ArrayJobId" not in job
    assert {name: value for name, _, value in (pair.partition("=") for pair in job.split()) if name in shown} == shown


def test_a_job_without_the_shells_variables(slurm_cluster: Mapping[str, str], tmp_path: Path) -> None:
    """With SBATCH_EXPORT=NONE, srun would not pass on what `setup` and submitit set."""
    own = {"SBATCH_EXPORT": "NONE", "SBATCH_ACCOUNT": "proj-a", "MY_TOKEN": "x", "SLURM_TIMELIMIT": "1"}
    sweeping = Sweeping(tmp_path, {**os.environ, **slurm_cluster, **own})
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nenv -0 > {tmp_path}/environ\nexec {shlex.quote(sys.executable)} "$@"\n')
    python.chmod(0o755)
    setup = ["export HF_HUB_OFFLINE=1", "export SET_HERE=1"]
    slurm = {"python": str(python), "setup": setup}
    file = write_sweep(tmp_path / "none.yaml", allocations=["1x1"], base=tiny_base(), slurm=slurm)
    sweeping.run("submit", file)
    (row,) = wait_for(
        lambda: [row for row in sweeping.status() if row["end_time"]], "end of the job", limit_s=FINISH_LIMIT_S
    )
    assert (row["state"], row["reason"]) == ("COMPLETED", None)
    environ = _read_environ(tmp_path / "environ")
    assert (environ["SET_HERE"], environ["SLURM_JOB_ACCOUNT"]) == ("1", "proj-a")
    assert not {"MY_TOKEN", "SLURM_TIMELIMIT"} & environ.keys()


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
    # Only sacct says by whom, so each run has one of two reasons.
    rows = wait_for(lambda: _if_all_cancelled(sweeping), "end of all runs", limit_s=90)
    user = pwd.getpwuid(os.getuid()).pw_name
    assert {row["reason"] for row in rows} <= {"cancelled", f"cancelled by {user}"}
    assert {(row["start_time"], row["gpu_hours"]) for row in rows} == {(None, 0.0)}


def _if_all_cancelled(sweeping: Sweeping) -> list[dict[str, Any]]:
    rows = sweeping.status()
    return rows if all(row["state"] == "CANCELLED" for row in rows) else []
