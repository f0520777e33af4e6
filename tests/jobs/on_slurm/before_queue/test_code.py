"""On the real Slurm: which code and which `python` a run starts that waited while the user edited."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from jobs.slurm.states import State
from tests.jobs.storage.test_code_state import git
from tests.jobs.sweeping import Sweeping, wait_for, write_sweep

pytestmark = pytest.mark.slurm

LIMIT_S = 90.0
# It starts with a Python that has nothing of this package.
SCRIPT = """
import importlib.util, json, os
from pathlib import Path

line = {"step": 1, "version": VERSION, "data": int(Path("../data/number").read_text())}
line["ours"] = sum(importlib.util.find_spec(name) is not None for name in ("jobs", "disttrain", "submitit"))
line["setup"] = int(os.environ["STARTED_BY_SETUP"])
with open(os.environ["SWEEP_METRICS"], "a") as file:
    print(json.dumps(line), file=file)
"""


@pytest.fixture
def sweeping(slurm_cluster: Mapping[str, str], tmp_path: Path) -> Iterator[Sweeping]:
    """The command in the folder `work` of a checkout."""
    project = tmp_path / "project"
    for folder in ("work", "data", "bin"):
        (project / folder).mkdir(parents=True)
    (project / "data" / "number").write_text("7")
    (project / ".gitignore").write_text("data\nbin\n")
    python = shutil.which("python3", path="/usr/bin:/bin")
    if python is None:
        pytest.skip("this system has no Python of its own")
    (project / "bin" / "python").write_text(f'#!/bin/sh\nSTARTED_BY_SETUP=1 exec {python} "$@"\n')
    (project / "bin" / "python").chmod(0o755)
    git(project, "init", "--quiet")
    sweeping = Sweeping(project / "work", {**os.environ, **slurm_cluster})
    yield sweeping
    subprocess.run(["scancel", "--name=edited"], env=sweeping.environ, check=False)


def write(sweeping: Sweeping, version: int, lr: list[float], **sbatch: Any) -> Path:
    (sweeping.folder / "train.py").write_text(SCRIPT.replace("VERSION", str(version)))
    slurm = {"setup": [f"export PATH={sweeping.folder.parent / 'bin'}:$PATH"], "sbatch": sbatch}
    return write_sweep(
        sweeping.folder / "edited.yaml", allocations=["1x1"], command="python train.py", axes={"lr": lr}, slurm=slurm
    )


def ended(sweeping: Sweeping) -> list[dict[str, Any]] | None:
    rows = sweeping.status("edited")
    return rows if all(State(row["state"]).is_finished for row in rows) else None


def test_code_that_was_edited_while_its_job_waited(sweeping: Sweeping) -> None:
    sweeping.run("submit", write(sweeping, 1, [0.1], hold=True))
    (waiting,) = sweeping.status("edited")
    assert waiting["state"] == "PENDING"
    (sweeping.folder / "train.py").write_text("raise SystemExit('edited')")
    sweeping.outside("scontrol", "release", waiting["job_id"])
    (first,) = wait_for(lambda: ended(sweeping), "end of the first run", limit_s=LIMIT_S)
    assert (first["state"], first["reason"]) == ("COMPLETED", None)
    sweeping.run("submit", write(sweeping, 2, [0.1, 0.2]))
    wait_for(lambda: ended(sweeping), "end of the second run", limit_s=LIMIT_S)
    collected = sweeping.run("collect", "edited", "--json")
    rows = json.loads(collected.stdout)["runs"]
    assert [(row["state"], row["metrics.version"]) for row in rows] == [("COMPLETED", 1), ("COMPLETED", 2)]
    for name, value in {"metrics.data": 7, "metrics.ours": 0, "metrics.setup": 1}.items():
        assert [row[name] for row in rows] == [value, value], name
    old, new = (row["code"] for row in rows)
    assert old == first["code"] != new
    assert f"note: the runs have 2 versions of the code: {old} (1 run), {new} (1 run)" in collected.stderr
    table = sweeping.run("status", "edited").stdout
    assert all(f" {code}" in table for code in (old, new)), table
