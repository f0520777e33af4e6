"""sweep stacks on a run of the local executor: the ranks answer, and continue."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.jobs.local.test_on_local import sweeping_in
from tests.jobs.sweeping import records, tiny_base, wait_for, write_sweep

pytestmark = pytest.mark.process


def test_ranks_write_stacks_and_continue(tmp_path: Path) -> None:
    sweeping = sweeping_in(tmp_path)
    base = tiny_base(max_steps=100_000, num_workers=1, eval_every=100_000)
    file = write_sweep(tmp_path / "long.yaml", allocations=["1x2"], base=base)
    sweeping.run("submit", file, "--cluster", "local")
    (row,) = sweeping.status()
    run_dir = tmp_path / "runs" / "long" / "local" / "runs" / row["run_id"]
    try:
        wait_for(lambda: records(run_dir, 1, "step"), "step", limit_s=60)
        for _ in range(2):
            first, *ranks = sweeping.run("stacks", row["run_id"][:7]).stdout.splitlines()
            assert first.endswith(f": stacks in {run_dir}")
            for rank, line in enumerate(ranks):
                assert re.fullmatch(rf"rank {rank}  [a-z_]+\.[A-Za-z_]+  stacks-rank0000{rank}\.txt", line)
        wait_for(lambda: len(list(run_dir.glob("flight-rank*.json"))) == 2, "flight recorder", limit_s=20)
        before = len(records(run_dir, 0, "step"))
        wait_for(lambda: len(records(run_dir, 0, "step")) > before, "further step", limit_s=30)
        (row,) = sweeping.status()
        assert row["state"] == "RUNNING"
    finally:
        sweeping.run("cancel", "--all", "--yes")
