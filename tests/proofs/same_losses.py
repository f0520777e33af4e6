"""Proof: on the real Slurm, one rank and four ranks that share the same global batch have the same losses."""

from __future__ import annotations

import math
import tempfile
from pathlib import Path
from typing import Any

from disttrain.records.record_files import metrics_name, read_records
from disttrain.records.record_types import StepRecord
from tests.proofs.sweeping import cluster_environ, run_sweep

STEPS = 20
TOLERANCE = 1e-4  # relative; float32 sums in another order, twenty updates deep


def prove() -> str:
    """Every shape against 1x1, for each model and seed, step by step."""
    environ = cluster_environ()
    with tempfile.TemporaryDirectory() as folder:
        rows, _ = run_sweep("../tests/proofs/same_losses.yaml", Path(folder), environ)
        (runs,) = Path(folder).glob("same-losses/*/runs")
        losses = {
            (row["model"], row["seed"], row["allocation"]): global_losses(runs / row["run_id"], row) for row in rows
        }
    worst: dict[tuple[str, str], float] = {}
    for (model, seed, allocation), found in losses.items():
        alone = losses[model, seed, "1x1"]
        assert len(found) == len(alone) == STEPS
        apart = max(abs(a - b) / abs(b) for a, b in zip(found, alone, strict=True))
        assert apart <= TOLERANCE, f"{model} seed {seed} on {allocation}: losses {apart:.1e} apart from those on 1x1"
        worst[model, allocation] = max(apart, worst.get((model, allocation), 0.0))
    table = "\n".join(
        f"| {model} | {shape} | {apart:.1e} |" for (model, shape), apart in worst.items() if shape != "1x1"
    )
    return f"""\
`tests/proofs/same_losses.yaml` on the two-node test cluster: a global batch of 4 on one rank, and shared among two and
four, {STEPS} steps over 30 examples, the last step of each epoch with fewer examples than four ranks, three seeds. The
largest relative difference of any step's loss (over all its examples) from that of 1x1; at most {TOLERANCE:g} is
allowed. DDP averages gradients rightly, and no example is lost or doubled.

| model | shape | difference |
|---|---|---|
{table}"""


def global_losses(run_dir: Path, row: dict[str, Any]) -> list[float]:
    """The mean loss over all examples of each step, from the records of every rank."""
    sums, counts = [0.0] * STEPS, [0] * STEPS
    for rank in range(row["world_size"]):
        for record in read_records(run_dir / metrics_name(rank)):
            if isinstance(record, StepRecord) and record.loss is not None:
                sums[record.step - 1] += record.loss * record.examples
                counts[record.step - 1] += record.examples
    assert set(counts) == {4, 2}, f"examples of the steps: {counts}"
    assert all(math.isfinite(total) for total in sums)
    return [total / count for total, count in zip(sums, counts, strict=True)]
