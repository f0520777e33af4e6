"""On the real Slurm: a run that hangs reports its stacks on request, and is ended with the name of the stopped rank."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.jobs.sweeping import Sweeping, processes_with, records, tiny_base, wait_for, write_sweep

pytestmark = pytest.mark.slurm

LIMIT_S = 20.0  # longer than `sweep stacks` waits for a rank that does not answer


def test_stopped_rank_is_named_and_ended(slurm_cluster: Mapping[str, str], tmp_path: Path) -> None:
    mark = f"TEST_OF_A_HANG={tmp_path}"
    name = f"hang-{tmp_path.name}"
    sweeping = Sweeping(tmp_path, {**os.environ, **slurm_cluster, "TEST_OF_A_HANG": str(tmp_path)})
    base = tiny_base(max_steps=10_000_000, eval_every=10_000_000, num_workers=1, collective_timeout_s=LIMIT_S)
    sweeping.run("submit", write_sweep(tmp_path / f"{name}.yaml", allocations=["2x1"], base=base))
    try:
        (row,) = sweeping.status()
        run_dir = tmp_path / "runs" / name / "two_nodes" / "runs" / row["run_id"]
        wait_for(lambda: records(run_dir, 1, "step"), "step", limit_s=90)
        first, *ranks = sweeping.run("stacks", row["run_id"]).stdout.splitlines()
        assert first.endswith(f": stacks in {run_dir}")
        for rank, line in enumerate(ranks):
            assert re.fullmatch(rf"rank {rank}  \w+\.\w+  stacks-rank0000{rank}\.txt", line)
        # The ranks, their data workers, srun and the script of the job continue.
        before = len(records(run_dir, 1, "step"))
        wait_for(lambda: len(records(run_dir, 1, "step")) > before, "further step", limit_s=30)
        (row,) = sweeping.status()
        assert row["state"] == "RUNNING"

        os.kill(records(run_dir, 1, "start")[0]["pid"], signal.SIGSTOP)
        answers = sweeping.run("stacks", row["run_id"]).stdout.splitlines()[1:]
        assert [line.split("  ")[1] == "no answer" for line in answers] == [False, True]
        wait_for(lambda: not processes_with(mark), "end of all processes", limit_s=90)
        row = wait_for(
            lambda: next((row for row in sweeping.status() if row["state"] == "FAILED"), None), "end", limit_s=90
        )
        assert re.fullmatch(r"rank 1 on node[12] gave no sign of life since step \d+", row["reason"])
    finally:
        subprocess.run(["scancel", f"--name={name}"], env=sweeping.environ, check=False)
