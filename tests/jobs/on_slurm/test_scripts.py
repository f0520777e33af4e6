"""On the real Slurm: sweeps of the user's own scripts, from their environment to their rows in the results."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from disttrain.records.lifecycle.attempt_log import read_attempts
from jobs.slurm.states import State
from tests.jobs.sweeping import DATA, Sweeping, wait_for, write_sweep

pytestmark = pytest.mark.slurm

EXAMPLES = Path(__file__).resolve().parents[3] / "sweeps" / "examples"
ALLOCATIONS = ["1x1", "1x4", "2x2", "2x1"]
LIMIT_S = 300.0
# Long enough for a preemption in between: 2,400 sentences, with a batch of 4 on each of 4 ranks.
EPOCHS, STEPS_OF_AN_EPOCH = 12, 150

# It knows nothing of this project. It keeps what it was started with, in a file of its own.
KEEPS = """
import json, os, sys
from pathlib import Path

rank = os.environ.get("RANK", "none")
kept = {"arguments": sys.argv[1:], "environ": dict(os.environ)}
Path(f"{os.environ['KEPT']}-{rank}.json").write_text(json.dumps(kept))
"""
FAILS = """
import os, time

import torch.distributed as dist

dist.init_process_group("gloo")
if dist.get_rank() == 1:
    raise ValueError("no such label: 'dog'")
dist.barrier()
"""
# Rank 0 needs longer than srun waits for it after the end of the others.
LATE = """
import os, time
from pathlib import Path

if os.environ["RANK"] == "0":
    time.sleep(int(os.environ["LATE_S"]))
    Path(os.environ["SWEEP_RUN_DIR"], "model.bin").write_text("saved")
"""
WRITES = """
import argparse, json, os

parser = argparse.ArgumentParser()
parser.add_argument("--what")
what = parser.parse_args().what
with open(os.environ["SWEEP_METRICS"], "a") as file:
    if what == "damaged":
        file.write('{"step": 1, "loss": 2.0}\\n{"step": 2, "loss"\\n\\x00\\xff\\n[1, 2]\\n')
        file.write('{"step": 3, "loss": 1.0}\\n{"step": 4, "lo')
    if what == "many":
        for step in range(1, 100_001):
            file.write(json.dumps({"step": step, "loss": 1 / step}) + "\\n")
"""
ODD = [
    "two words",
    "it's",
    'say "yes"',
    "$HOME `id` $(id)",
    "größer 日本",
    "a\\b",
    "*",
    "--lr",
    "",
    "{lr}",
    "line\nbreak",
]


@pytest.fixture
def sweeping(slurm_cluster: Mapping[str, str], tmp_path: Path) -> Iterator[Sweeping]:
    # `python` is that of an activated environment.
    path = f"{Path(sys.executable).parent}:{slurm_cluster.get('PATH', os.environ['PATH'])}"
    environ = {**os.environ, **slurm_cluster, "PATH": path, "KEPT": str(tmp_path / "kept")}
    sweeping = Sweeping(tmp_path, environ)
    yield sweeping
    for file in tmp_path.glob("*.yaml"):
        subprocess.run(["scancel", f"--name={file.stem}"], env=environ, check=False)


def submit(sweeping: Sweeping, name: str, script: str | None = None, **sections: Any) -> None:
    if script is not None:
        (sweeping.folder / f"{name}.py").write_text(script)
        sections = {"command": f"python {name}.py", **sections}
    sweeping.run("submit", write_sweep(sweeping.folder / f"{name}.yaml", **sections))


def end(sweeping: Sweeping, name: str) -> list[dict[str, Any]]:
    """The rows of a sweep after the end of all its runs."""

    def ended() -> list[dict[str, Any]] | None:
        rows = sweeping.status(name)
        return rows if all(State(row["state"]).is_finished for row in rows) else None

    return wait_for(ended, f"end of {name}", limit_s=LIMIT_S, pause_s=1)


def kept(sweeping: Sweeping, rank: int) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((sweeping.folder / f"kept-{rank}.json").read_text())
    return values


@pytest.mark.parametrize("name", ["ddp_loop", "hf_trainer", "accelerate_loop"])
def test_an_example_on_four_allocations(sweeping: Sweeping, name: str) -> None:
    command = f"python {EXAMPLES / name}.py"
    submit(sweeping, name, command=command, allocations=ALLOCATIONS, axes={"lr": [1e-3]}, seeds=[1])
    rows = end(sweeping, name)
    assert [row["allocation"] for row in rows] == ALLOCATIONS
    for row in rows:
        assert (row["state"], row["reason"]) == ("COMPLETED", None), row
        assert row["steps"] > 0
        assert 0 < row["metrics.loss.best"] <= row["metrics.loss"]
        assert row["gpu_hours"] >= 0
        assert len(row["hosts"]) == row["world_size"]
        assert len(set(row["hosts"])) == row["num_nodes"]
    collected = json.loads(sweeping.run("collect", name, "--json").stdout)["runs"]
    assert {row["run_id"]: row["metrics.loss"] for row in collected} == {
        row["run_id"]: row["metrics.loss"] for row in rows
    }


def test_a_preempted_example_resumes(sweeping: Sweeping) -> None:
    command = f"python {EXAMPLES / 'ddp_loop.py'} --epochs {EPOCHS} --batch_size 4"
    submit(sweeping, "preempted", command=command, allocations=["2x2"], slurm={"partition": "preempt"})
    (run_dir,) = (sweeping.folder / "runs" / "preempted" / "two_nodes" / "runs").iterdir()
    first = run_dir / "script-metrics" / "rank00000-attempt001.jsonl"
    wait_for(lambda: first.is_file() and first.stat().st_size > 0, "metrics", limit_s=90)
    sweeping.outside(
        "sbatch", "--wrap=sleep 5", "-N2", "--gpus-per-node=3", f"--chdir={sweeping.folder}", "-J", "preempted"
    )
    wait_for(lambda: read_attempts(run_dir)[0].cause, "preemption", limit_s=90)
    (row,) = end(sweeping, "preempted")
    attempts = read_attempts(run_dir)
    assert (row["state"], row["reason"]) == ("COMPLETED", None)
    assert row["attempts"] >= len(attempts) >= 2
    assert attempts[0].cause == "preemption"
    assert attempts[1].first_step > 0
    second = [
        json.loads(line)
        for line in (run_dir / "script-metrics" / "rank00000-attempt002.jsonl").read_text().splitlines()
    ]
    assert second[0]["step"] > 1, "it resumed from its checkpoint"
    assert row["steps"] == EPOCHS * STEPS_OF_AN_EPOCH


def test_a_script_that_fails(sweeping: Sweeping) -> None:
    submit(sweeping, "fails", FAILS, allocations=["2x2"])
    (row,) = end(sweeping, "fails")
    assert (row["state"], row["reason_kind"]) == ("FAILED", "exception")
    assert row["reason"].startswith("rank 1 on node1: ValueError: no such label: 'dog'"), row["reason"]


def test_a_command_that_does_not_exist(sweeping: Sweeping) -> None:
    submit(sweeping, "nothing", command="pythom3 train.py", allocations=["1x1"])
    (row,) = end(sweeping, "nothing")
    assert row["state"] == "FAILED"
    assert "pythom3" in row["reason"], row["reason"]


def test_the_environment_is_that_of_torchrun(sweeping: Sweeping) -> None:
    submit(sweeping, "keeps", KEEPS, allocations=["2x2"])
    (row,) = end(sweeping, "keeps")
    assert row["state"] == "COMPLETED", row["reason"]
    ours = [kept(sweeping, rank)["environ"] for rank in range(4)]
    theirs = _environ_of_torchrun(sweeping)
    for rank, (our, their) in enumerate(zip(ours, theirs, strict=True)):
        names = {name for name in their if name not in sweeping.environ} - {"CUDA_VISIBLE_DEVICES"}
        exceptions = {"TORCHELASTIC_USE_AGENT_STORE": "False", "OMP_NUM_THREADS": "1"}
        differing_by_nature = {"MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID", "TORCHELASTIC_ERROR_FILE"}
        for name in sorted(names - differing_by_nature - exceptions.keys()):
            assert our.get(name) == their[name], f"{name} of rank {rank}"
        assert differing_by_nature & names <= our.keys()
        assert {name: our[name] for name in exceptions} == exceptions
        assert our["MASTER_ADDR"] == "node1"
        assert (our["SLURM_PROCID"], our["SLURM_JOB_ID"]) == (str(rank), ours[0]["SLURM_JOB_ID"])
        assert not [name for name in our if name.startswith("SUBMITIT_")]
    assert len({our["MASTER_PORT"] for our in ours}) == 1


def _environ_of_torchrun(sweeping: Sweeping) -> list[dict[str, str]]:
    """What the workers of two torchrun launchers with two processes each find in their environment, by rank."""
    environ = {**sweeping.environ, "KEPT": str(sweeping.folder / "torchrun"), "CUDA_VISIBLE_DEVICES": ""}
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nnodes=2",
        "--nproc_per_node=2",
        "--rdzv-backend=static",
    ]
    command += ["--master-addr=127.0.0.1", "--master-port=29123", "--rdzv-id=7"]
    agents = [
        subprocess.Popen([*command, f"--node-rank={node}", "keeps.py"], cwd=sweeping.folder, env=environ)
        for node in range(2)
    ]
    assert [agent.wait(120) for agent in agents] == [0, 0]
    return [json.loads((sweeping.folder / f"torchrun-{rank}.json").read_text())["environ"] for rank in range(4)]


def test_values_reach_the_script_unchanged(sweeping: Sweeping) -> None:
    submit(sweeping, "odd", KEEPS, allocations=["1x1"], base={f"key {index}": value for index, value in enumerate(ODD)})
    (row,) = end(sweeping, "odd")
    assert row["state"] == "COMPLETED", row["reason"]
    expected = [text for index, value in enumerate(ODD) for text in (f"--key {index}", value)]
    assert kept(sweeping, 0)["arguments"] == expected


def test_metrics_of_any_kind(sweeping: Sweeping) -> None:
    submit(sweeping, "writes", WRITES, allocations=["1x1"], axes={"what": ["none", "damaged", "many"]})
    rows = {row["what"]: row for row in end(sweeping, "writes")}
    assert {row["state"] for row in rows.values()} == {"COMPLETED"}
    assert rows["none"]["metrics.loss"] is None
    assert (rows["damaged"]["metrics.loss"], rows["damaged"]["steps"]) == (1.0, 3)
    assert rows["damaged"]["metrics.loss.mean"] == pytest.approx(1.5)
    assert "damaged" in " ".join(rows["damaged"]["notices"])
    assert (rows["many"]["steps"], rows["many"]["metrics.loss.best"]) == (100_000, 1e-5)
    table = sweeping.run("collect", "writes").stdout
    assert len(table.splitlines()) < 20, table


def test_a_rank_that_ends_late(sweeping: Sweeping) -> None:
    # The others have ended 130 s before; srun waits for 120 s.
    sweeping.environ["LATE_S"] = "130"
    submit(sweeping, "late", LATE, allocations=["1x4"])
    (row,) = end(sweeping, "late")
    assert row["state"] == "COMPLETED", row["reason"]
    (run_dir,) = (sweeping.folder / "runs" / "late" / "two_nodes" / "runs").iterdir()
    assert (run_dir / "output" / "model.bin").is_file()


def test_torchrun_as_the_launcher(sweeping: Sweeping) -> None:
    submit(sweeping, "agents", KEEPS, allocations=["2x2"], launcher="torchrun --max-restarts=2")
    (row,) = end(sweeping, "agents")
    assert row["state"] == "COMPLETED", row["reason"]
    environs = [kept(sweeping, rank)["environ"] for rank in range(4)]
    assert [environ["LOCAL_RANK"] for environ in environs] == ["0", "1", "0", "1"]
    assert {environ["TORCHELASTIC_MAX_RESTARTS"] for environ in environs} == {"2"}
    assert {environ["WORLD_SIZE"] for environ in environs} == {"4"}
    tasks = sweeping.outside("sacct", "-nXP", "-j", row["job_id"], "-o", "NTasks,AllocTRES")
    assert "gres/gpu=4" in tasks


def test_the_core_and_a_script_in_one_table(sweeping: Sweeping) -> None:
    sections = yaml.safe_load((EXAMPLES / "core_and_trainer.yaml").read_text())
    # The GPUs of these nodes are only names. The script looks for itself; the core wants to be told.
    sections["zip"] |= {"device": ["cpu"], "dataset": [str(DATA / "sst2")]}
    for entry in sections["include"]:
        entry["command"] = entry["command"].replace("sweeps/examples", str(EXAMPLES))
    del sections["name"]
    submit(sweeping, "both", **sections)
    rows = end(sweeping, "both")
    assert {(row["state"], row["reason"]) for row in rows} == {("COMPLETED", None)}
    assert all(row["samples_per_s"] > 0 for row in rows)
    scripts = [row for row in rows if row["command"] is not None]
    assert len(scripts) == len(rows) / 2
