"""Proof: on the real Slurm, the losses are the same when one, two or four ranks share the same global batch."""

from __future__ import annotations

import math
import tempfile
from pathlib import Path
from typing import Any

from disttrain.records.record_files import metrics_name, read_records
from disttrain.records.record_types import StepRecord
from tests.proofs.sweeping import cluster_environ, run_sweep

STEPS = 20
TOLERANCE = 1e-4  # relative; float32 sums have another order, over twenty updates


def prove() -> str:
    """Compares the losses of every allocation with those on 1x1, step by step, for each model and seed."""
    environ = cluster_environ()
    with tempfile.TemporaryDirectory() as folder:
        rows, _ = run_sweep("../tests/proofs/same_losses.yaml", Path(folder), environ)
        (runs,) = Path(folder).glob("same-losses/*/runs")
        losses = {
            (row["config"]["model"], row["config"]["seed"], row["allocation"]): global_losses(runs / row["run_id"], row)
            for row in rows
        }
    worst: dict[tuple[str, str], float] = {}
    for (model, seed, allocation), several in losses.items():
        single = losses[model, seed, "1x1"]
        assert len(several) == len(single) == STEPS
        difference = max(abs(a - b) / abs(b) for a, b in zip(several, single, strict=True))
        name = f"{model} seed {seed} on {allocation}"
        assert difference <= TOLERANCE, f"{name}: losses differ by {difference:.1e} from those on 1x1"
        worst[model, allocation] = max(difference, worst.get((model, allocation), 0.0))
    table = "\n".join(
        f"| {model} | {allocation} | {difference:.1e} |"
        for (model, allocation), difference in worst.items()
        if allocation != "1x1"
    )
    return f"""\
`tests/proofs/same_losses.yaml` runs on the two-node test cluster: a global batch of 4 on one rank, and shared among two
and four ranks, {STEPS} steps over 30 examples, three seeds. The last step of each epoch has fewer examples than four
ranks. The table has the largest relative difference of any step's loss (over all its examples) from the loss on 1x1; at
most {TOLERANCE:g} is allowed. So DDP averages gradients correctly, and no example is lost or doubled.

| model | allocation | difference |
|---|---|---|
{table}"""


def global_losses(run_dir: Path, row: dict[str, Any]) -> list[float]:
    """The mean loss over all examples of each step, from the records of all ranks."""
    sums, counts = [0.0] * STEPS, [0] * STEPS
    for rank in range(row["world_size"]):
        for record in read_records(run_dir / metrics_name(rank)):
            if isinstance(record, StepRecord) and record.loss is not None:
                sums[record.step - 1] += record.loss * record.examples
                counts[record.step - 1] += record.examples
    assert set(counts) == {4, 2}, f"examples of the steps: {counts}"
    assert all(math.isfinite(total) for total in sums)
    return [total / count for total, count in zip(sums, counts, strict=True)]
