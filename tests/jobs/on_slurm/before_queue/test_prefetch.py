"""sweep prefetch on the real Slurm: a job without GPUs fetches from a hub on the login node, and the run asks none."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.hub.repositories import DATASET, MODEL, make_repositories
from tests.hub.stand_in import serve
from tests.jobs.sweeping import Sweeping, write_sweep

pytestmark = pytest.mark.slurm

# The login node, as the nodes of tests/slurm_cluster see it.
LOGIN = "login"
FINISH_LIMIT_S = 240.0


def test_a_job_without_gpus_fetches(slurm_cluster: Mapping[str, str], tmp_path: Path) -> None:
    make_repositories(tmp_path / "hub")
    base = {
        "model": "bert", "checkpoint": MODEL, "dataset": DATASET, "max_length": 32, "max_steps": 2, "num_workers": 0,
        "per_gpu_batch": 4, "max_eval_examples": 40, "device": "cpu",
    }  # fmt: skip
    file = write_sweep(tmp_path / "fetched.yaml", allocations=["1x1"], base=base)
    with serve(tmp_path / "hub", host="", name=LOGIN) as hub:
        sweeping = Sweeping(
            tmp_path, {**os.environ, **slurm_cluster, "HF_HOME": str(tmp_path / "hf"), "HF_ENDPOINT": hub.url}
        )
        fetched = sweeping.run("prefetch", file, timeout_s=FINISH_LIMIT_S)
        assert "complete after" in fetched.stdout
        assert hub.downloads()
        hub.asked.clear()
        folder = tmp_path / "runs" / "fetched" / "two_nodes"
        job = json.loads((folder / "prefetch" / "job.json").read_text())["job_id"]
        requested = sweeping.outside("sacct", "-X", "-n", "-P", "-j", job, "-o", "ReqTRES,JobName")
        assert "gpu" not in requested
        assert requested.rstrip().endswith("|fetched-prefetch")
        sweeping.run("submit", file, "--wait", "--poll", "1", timeout_s=FINISH_LIMIT_S)
        (row,) = sweeping.status()
        assert (row["state"], hub.asked) == ("COMPLETED", [])
