"""On the real Slurm: the attempts of a requeued run, and what stays of them when the accounting was purged."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.jobs.sweeping import Sweeping, records, tiny_base, wait_for, write_sweep

pytestmark = pytest.mark.slurm

# sacct after a purge: the header, and no row.
PURGED = """#!/bin/sh
for last; do :; done
echo "$last" | sed 's/,/^|^/g'
"""


def test_the_attempts_of_a_requeued_run_outlast_the_accounting(
    slurm_cluster: Mapping[str, str], tmp_path: Path
) -> None:
    sweeping = Sweeping(tmp_path, {**os.environ, **slurm_cluster})
    path = write_sweep(tmp_path / f"requeued-{os.getpid()}.yaml", allocations=["1x1"], base=tiny_base(max_steps=60))
    sweeping.run("submit", path)
    (run_dir,) = (tmp_path / "runs" / path.stem / "two_nodes" / "runs").iterdir()
    wait_for(lambda: records(run_dir, 0, "step"), "steps", limit_s=60)
    job_id = sweeping.status()[0]["job_id"]
    sweeping.outside("scontrol", "requeue", job_id)
    wait_for(lambda: sweeping.status()[0]["state"] == "COMPLETED", "its end", limit_s=240, pause_s=1)
    before = _attempts(sweeping, run_dir.name)
    fields = "Submit,Start,ElapsedRaw,NodeList"
    environ = {**sweeping.environ, "TZ": "UTC", "SLURM_TIME_FORMAT": "%s"}
    by_hand = Sweeping(tmp_path, environ).outside("sacct", "-nPXD", "-j", job_id, "-o", fields).split()
    shown = [[row["submit_s"], row["start_s"], row["elapsed_s"], row["node_list"]] for row in before]
    assert sorted("|".join(map(str, row)) for row in shown) == sorted(by_hand)
    assert len(before) == 2
    row = sweeping.status()[0]
    (tmp_path / "bin").mkdir()
    wrapper = tmp_path / "bin" / "sacct"
    wrapper.write_text(PURGED)
    wrapper.chmod(0o755)
    purged = Sweeping(tmp_path, {**sweeping.environ, "PATH": f"{tmp_path / 'bin'}:{sweeping.environ['PATH']}"})
    assert _attempts(purged, run_dir.name) == before
    assert purged.status()[0] == row


def _attempts(sweeping: Sweeping, run: str) -> list[dict[str, object]]:
    listed: list[dict[str, object]] = json.loads(sweeping.run("attempts", run, "--json").stdout)
    return listed
