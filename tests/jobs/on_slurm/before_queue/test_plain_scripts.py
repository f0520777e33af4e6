"""On the real Slurm: plain batch scripts of all four allocations, submitted by sbatch by hand, and collected."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from disttrain.records.lifecycle.attempt_log import read_attempts
from jobs.slurm.states import State
from jobs.storage.ledger import read_ledger
from tests.jobs.sweeping import Sweeping, tiny_base, wait_for, write_sweep

pytestmark = pytest.mark.slurm

ALLOCATIONS = ("1x1", "1x4", "2x2", "2x1")
LIMIT_S = 120.0
# What Slurm says of a job that does not depend on who submitted it, or when.
REQUESTED = (
    "Account", "QOS", "Partition", "TimeLimit", "NumNodes", "NumCPUs", "NumTasks", "CPUs/Task", "ReqB:S:C:T", "TRES",
    "Requeue", "Features", "OverSubscribe", "MinCPUsNode", "MinMemoryNode", "TresPerNode", "Power", "Nice",
)  # fmt: skip
# It asks to be started again, the first time.
STOPS = 'import os, sys\n\nif os.environ.get("SLURM_RESTART_COUNT", "0") == "0":\n    sys.exit(85)\n'


@pytest.fixture
def sweeping(slurm_cluster: Mapping[str, str], tmp_path: Path) -> Iterator[Sweeping]:
    path = f"{Path(sys.executable).parent}:{slurm_cluster.get('PATH', os.environ['PATH'])}"
    sweeping = Sweeping(tmp_path, {**os.environ, **slurm_cluster, "PATH": path})
    yield sweeping
    for file in tmp_path.glob("*.yaml"):
        subprocess.run(["scancel", f"--name={file.stem}"], env=sweeping.environ, check=False)


def end(sweeping: Sweeping, folder: Path) -> list[dict[str, Any]]:
    """The rows of a sweep after the end of all its runs."""

    def ended() -> list[dict[str, Any]] | None:
        rows = sweeping.status(folder)
        return rows if all(State(row["state"]).is_finished for row in rows) else None

    return wait_for(ended, f"end of {folder}", limit_s=LIMIT_S, pause_s=1)


def sbatch(sweeping: Sweeping, *arguments: str | Path) -> str:
    return sweeping.outside("sbatch", *arguments).split()[-1]


def requested(sweeping: Sweeping, job_id: str) -> dict[str, str]:
    """What Slurm has of the request of a job."""
    text = sweeping.outside("scontrol", "show", "job", "-o", job_id).splitlines()[0]
    values = dict(re.findall(r"(\S+?)=(\S*)", text))
    return {name: value for name, value in values.items() if name in REQUESTED}


def test_four_allocations_by_hand(sweeping: Sweeping) -> None:
    """They are on hold until their requests are compared with those of a submission."""
    file = write_sweep(
        sweeping.folder / "plain.yaml",
        allocations=list(ALLOCATIONS),
        base=tiny_base(max_steps=2),
        slurm={"cpus_per_gpu": 1, "memory_gb_per_gpu": 0.25, "sbatch": {"nice": 3}},
    )
    folder = sweeping.folder / "by hand"
    sweeping.run("plan", file, "--scripts", "--plain", "-o", folder)
    assert {row["state"] for row in sweeping.status(folder)} == {"NOT_SUBMITTED"}

    jobs = {name: sbatch(sweeping, "--hold", folder / "scripts" / f"{name}.sh") for name in ALLOCATIONS}
    rows = sweeping.status(folder)
    assert {row["state"] for row in rows} == {"PENDING"}
    assert {row["job_id"] for row in rows} == {*jobs.values()}
    again = sweeping.run("plan", file, "--scripts", "--plain", "-o", folder).stdout
    assert again.startswith("plain on two_nodes: writing scripts for 0 of 4 runs (0 done, 4 queued or running)\n")

    plain = {name: requested(sweeping, job) for name, job in jobs.items()}
    assert plain == submitted_requests(sweeping, file)
    sweeping.outside("scontrol", "release", *jobs.values())

    rows = end(sweeping, folder)
    assert [(row["state"], row["reason"]) for row in rows] == [("COMPLETED", None)] * 4
    csv = sweeping.run("collect", folder, "--csv").stdout
    assert csv.count("COMPLETED") == 4
    assert [row["world_size"] for row in rows] == [1, 4, 4, 2]
    known = read_ledger(folder)
    assert (known.damaged_lines, len(list(known.all_jobs()))) == ((), 4)


def submitted_requests(sweeping: Sweeping, file: Path) -> dict[str, dict[str, str]]:
    """What Slurm has of the requests of `sweep submit`, whose jobs wait for a day and are then cancelled."""
    text = file.read_text().replace("nice: 3", "nice: 3\n    begin: now+1day").replace("name: plain", "name: submitted")
    other = file.with_name("submitted.yaml")
    other.write_text(text)
    output = sweeping.run("submit", other).stdout
    jobs = dict(re.findall(r"  (\dx\d): 1 run as job (\d+)\n", output))
    requests = {name: requested(sweeping, job) for name, job in jobs.items()}
    sweeping.outside("scancel", "--name=submitted")
    return requests


def test_tasks_of_an_array_that_requeue_themselves(sweeping: Sweeping) -> None:
    """Each task appends itself to the ledger a second time."""
    (sweeping.folder / "stops.py").write_text(STOPS)
    file = write_sweep(
        sweeping.folder / "stops.yaml", allocations=["2x1"], command="python stops.py", axes={"value": [1, 2]}
    )
    folder = sweeping.folder / "by hand"
    sweeping.run("plan", file, "--scripts", "--plain", "-o", folder)
    job = sbatch(sweeping, folder / "scripts" / "2x1.sh")
    rows = end(sweeping, folder)
    assert [(row["state"], row["job_id"]) for row in rows] == [("COMPLETED", f"{job}_0"), ("COMPLETED", f"{job}_1")]
    lines = (folder / "ledger.jsonl").read_text().splitlines()
    for row in rows:
        assert len([line for line in lines if f'"{row["job_id"]}"' in line]) >= 2
        attempts = read_attempts(folder / "runs" / row["run_id"])
        assert [attempt.cause for attempt in attempts] == ["request", None]
    known = sorted(each.job_id for each in read_ledger(folder).all_jobs())
    assert known == [row["job_id"] for row in rows]
