"""The environment of a script is the one that the installed torchrun gives a worker, with two named exceptions."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.disttrain.command.conftest import StartScript

pytestmark = pytest.mark.process

# Rank 0 of the script opens the store, and a rank computes with its cores. torchrun's values are "True" and "1".
EXCEPTIONS = {"TORCHELASTIC_USE_AGENT_STORE", "OMP_NUM_THREADS"}
# They are different in each run.
OF_ONE_RUN = {"MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID", "TORCHELASTIC_ERROR_FILE"}
OURS = {"SWEEP_RUN_DIR", "SWEEP_METRICS"}

PRINT_ENVIRONMENT = """
import json, os
from pathlib import Path
Path(os.environ["TEST_FOLDER"], os.environ["RANK"] + ".json").write_text(json.dumps(dict(os.environ)))
"""


def environments(folder: Path, rank: int) -> dict[str, str]:
    values: dict[str, str] = json.loads((folder / f"{rank}.json").read_text())
    return {name: value for name, value in values.items() if not name.startswith("SLURM_") and name not in OURS}


def test_the_environment_is_that_of_torchrun(
    start_script: StartScript, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    torchruns, ours = tmp_path / "torchrun", tmp_path / "ours"
    torchruns.mkdir()
    ours.mkdir()
    threads = {"SLURM_CPUS_PER_TASK": "2"}
    ranks = start_script(
        PRINT_ENVIRONMENT, per_node=2, environ={"TEST_FOLDER": str(ours), "SUBMITIT_EXECUTOR": "slurm", **threads}
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--rdzv-backend=c10d"]
    subprocess.run(
        [*command, "--rdzv-endpoint=localhost:0", tmp_path / "work" / "train.py"],
        env={**os.environ, "TEST_FOLDER": str(torchruns)},
        check=True,
        capture_output=True,
    )
    assert ranks.wait() == [0, 0]
    cores = str(min(2, len(os.sched_getaffinity(0))))
    for rank in range(2):
        expected, found = environments(torchruns, rank), environments(ours, rank)
        assert found.keys() == expected.keys()
        different = {name for name in found if found[name] != expected[name]}
        assert different - OF_ONE_RUN - {"TEST_FOLDER"} <= EXCEPTIONS
        assert (expected["TORCHELASTIC_USE_AGENT_STORE"], found["TORCHELASTIC_USE_AGENT_STORE"]) == ("True", "False")
        assert (expected["OMP_NUM_THREADS"], found["OMP_NUM_THREADS"]) == ("1", cores)
        assert found["MASTER_PORT"].isdigit()
        assert found["TORCHELASTIC_ERROR_FILE"].startswith("/")


def test_the_threads_of_the_user_stay(start_script: StartScript, tmp_path: Path) -> None:
    ranks = start_script(
        PRINT_ENVIRONMENT, environ={"TEST_FOLDER": str(tmp_path), "OMP_NUM_THREADS": "7", "SLURM_CPUS_PER_TASK": "2"}
    )
    assert ranks.wait() == [0]
    assert environments(tmp_path, 0)["OMP_NUM_THREADS"] == "7"
