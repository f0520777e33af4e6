"""Tests of the properties of the test cluster on which other tests rely."""

import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

pytestmark = pytest.mark.slurm

FOLDER = Path(__file__).resolve().parent
CLUSTER = FOLDER / "cluster"
ADDRESSES = {"node1": "10.77.0.11", "node2": "10.77.0.12"}
TIMEOUT_S = 90


def run(slurm_cluster: Mapping[str, str], *command: str | Path) -> str:
    """The standard output of a client command, which must succeed."""
    done = subprocess.run(
        command,
        env={**os.environ, **slurm_cluster},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def submit(slurm_cluster: Mapping[str, str], folder: Path, *arguments: str) -> str:
    """Submits a batch job and returns its id; its output is written to <id>.out in the folder."""
    return run(slurm_cluster, "sbatch", "--parsable", f"--output={folder}/%j.out", *arguments).strip()


def accounting(slurm_cluster: Mapping[str, str], job_id: str) -> dict[str, dict[str, str]]:
    """The rows of sacct by JobID, when slurmdbd has recorded the end of the job."""
    fields = ("JobID", "State", "AllocTRES", "MaxRSS", "NodeList")
    command = ["sacct", "-n", "-P", "--noconvert", "-j", job_id, "-o", ",".join(fields)]
    end_s = time.monotonic() + TIMEOUT_S
    while True:
        lines = run(slurm_cluster, *command).splitlines()
        rows = {row["JobID"]: row for row in (dict(zip(fields, line.split("|"), strict=True)) for line in lines)}
        if rows and all(row["State"] not in ("PENDING", "RUNNING") for row in rows.values()):
            return rows
        assert time.monotonic() < end_s, f"sacct does not see the end of job {job_id}: {rows}"
        time.sleep(0.3)


def slurmctld_pid(slurm_cluster: Mapping[str, str]) -> str:
    return (Path(slurm_cluster["SLURM_CONF"]).parent.parent / "run" / "slurmctld.pid").read_text()


def test_env_prints_exports_for_clients(slurm_cluster: Mapping[str, str]) -> None:
    lines = run(slurm_cluster, CLUSTER, "env").splitlines()
    exported = dict(line.removeprefix("export ").split("=", 1) for line in lines)
    assert all(line.startswith("export ") for line in lines)
    assert exported["SLURM_CONF"] == slurm_cluster["SLURM_CONF"]
    assert exported["SWEEP_CLUSTER"] == str(FOLDER / "two_nodes.yaml")


def test_env_fails_without_a_cluster(slurm_cluster: Mapping[str, str]) -> None:
    environ = {**os.environ, **slurm_cluster, "SLURM_CLUSTER_DIR": "/tmp/sweeptest-not-there"}
    done = subprocess.run([CLUSTER, "env"], env=environ, capture_output=True, text=True)
    expected = "cluster: not up in /tmp/sweeptest-not-there; start it with `cluster up`\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", expected)


def test_second_up_restarts_nothing(slurm_cluster: Mapping[str, str]) -> None:
    before = slurmctld_pid(slurm_cluster)
    run(slurm_cluster, CLUSTER, "up")
    assert slurmctld_pid(slurm_cluster) == before


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_up_needs_root(slurm_cluster: Mapping[str, str]) -> None:
    # The import comes first: an ordinary user may not be able to read the checkout.
    code = f"""
import os, sys
sys.path.insert(0, {str(FOLDER)!r})
from _cluster.cli import main
os.setuid(65534)
sys.exit(main(["up"]))
"""
    environ = {**os.environ, **slurm_cluster}
    done = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True)
    assert done.returncode == 3, done.stderr
    assert done.stderr == "cluster: cannot run here: not root: namespaces, a bridge and slurmd need root\n"


def test_status_lists_both_nodes(slurm_cluster: Mapping[str, str]) -> None:
    status = run(slurm_cluster, CLUSTER, "status")
    assert status.startswith("healthy, in ")
    assert "proctrack/" in status
    for node in ADDRESSES:
        assert f"node {node} " in status


def test_hosts_resolve_each_other(slurm_cluster: Mapping[str, str]) -> None:
    script = 'for name in node1 node2; do echo "$(hostname) $(getent ahostsv4 $name | head -n1 | cut -d" " -f1)"; done'
    lines = run(slurm_cluster, "srun", "-N2", "--ntasks-per-node=1", "sh", "-c", script).splitlines()
    assert sorted(lines) == sorted(f"{host} {address}" for host in ADDRESSES for address in ADDRESSES.values())


def test_each_host_has_its_own_address(slurm_cluster: Mapping[str, str]) -> None:
    script = "echo $(hostname) $(ip -4 -o address show dev eth0)"
    lines = run(slurm_cluster, "srun", "-N2", "--ntasks-per-node=1", "sh", "-c", script).splitlines()
    addresses = {words[0]: words[words.index("inet") + 1] for words in map(str.split, lines)}
    assert addresses == {node: f"{address}/24" for node, address in ADDRESSES.items()}


def test_gpus_are_bound_and_counted(slurm_cluster: Mapping[str, str], tmp_path: Path) -> None:
    wrapped = 'srun --ntasks-per-node=1 sh -c "echo gpus=\\$CUDA_VISIBLE_DEVICES"'
    job_id = submit(slurm_cluster, tmp_path, "-N2", "--gpus-per-node=4", f"--wrap={wrapped}")
    rows = accounting(slurm_cluster, job_id)
    assert rows[job_id]["State"] == "COMPLETED"
    assert (tmp_path / f"{job_id}.out").read_text().split() == ["gpus=0,1,2,3"] * 2
    for row in (rows[job_id], rows[f"{job_id}.0"]):
        assert "gres/gpu=8" in row["AllocTRES"].split(",")


def test_a_short_step_has_a_memory_peak(slurm_cluster: Mapping[str, str], tmp_path: Path) -> None:
    allocated_bytes = 100_000_000
    program = f"import time; data = b'x' * {allocated_bytes}; time.sleep(2.5)"
    job_id = submit(slurm_cluster, tmp_path, f'--wrap=srun /usr/bin/python3 -c "{program}"')
    rows = accounting(slurm_cluster, job_id)
    assert int(rows[f"{job_id}.0"]["MaxRSS"]) > allocated_bytes
