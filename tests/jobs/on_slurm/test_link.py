"""A sweep on the real Slurm with a training run and a run that measures the link between its two nodes."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.jobs.sweeping import Sweeping, records, tiny_base, write_sweep

pytestmark = pytest.mark.slurm

FINISH_LIMIT_S = 240.0


def test_bandwidth_as_a_share_of_the_link(slurm_cluster: Mapping[str, str], tmp_path: Path) -> None:
    sweeping = Sweeping(tmp_path, {**os.environ, **slurm_cluster})
    base = tiny_base(detailed_timing=True, max_steps=6)
    file = write_sweep(tmp_path / "linked.yaml", allocations=["2x1"], base=base, measure_link=True)
    assert "model=link" in sweeping.run("plan", file).stdout
    done = sweeping.run("submit", file, "--wait", "--poll", "1", timeout_s=FINISH_LIMIT_S)
    trained, link = sweeping.status()
    assert (trained["model"], link["model"]) == ("bert", "link")
    for row in (trained, link):
        assert (row["state"], row["hosts"], row["backend"]) == ("COMPLETED", ["node1", "node2"], "gloo")
    assert trained["link_share"] == trained["bus_gb_per_s"] / link["link_bus_gb_per_s"] > 0
    assert (trained["label"], link["label"]) == ("2x1", "2x1 model=link")
    assert (link["steps"], link["samples_per_s"], link["link_share"]) == (0, None, None)
    assert link["import_s"] > 0
    sizes = records(tmp_path / "runs" / "linked" / "two_nodes" / "runs" / link["run_id"], 0, "link")
    assert sizes[0]["size_bytes"] == 4096
    assert (link["link_latency_ms"], link["link_bus_gb_per_s"]) == (sizes[0]["median_ms"], sizes[-1]["bus_gb_per_s"])
    sweeping.environ["COLUMNS"] = "300"
    assert f"{trained['link_share']:.3g}" in sweeping.run("status").stdout
    assert "link of 2x1: " in done.stdout
    assert sweeping.run("submit", file).stdout.startswith(
        "linked on two_nodes: submitting 0 of 2 runs (2 done, 0 queued"
    )
