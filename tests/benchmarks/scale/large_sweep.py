"""A sweep of thousands of runs, as a user submits it."""

from __future__ import annotations

from pathlib import Path

_SWEEP = """\
name: s
allocations: [1x1, 1x4, 2x2, 2x4]
base: {{model: bert, dataset: ./data, max_steps: 200}}
axes:
  lr: [{lr}]
  per_gpu_batch: [4, 8, 16, 32, 64]
seeds: [{seeds}]
slurm: {{time: "01:00:00"{options}}}
"""
LEAST_RUNS = 200  # 4 allocations, 10 learning rates, 5 batches


def write_large_sweep(folder: Path, runs: int, options: str = "") -> Path:
    """Writes s.yaml, a sweep of this number of runs, and its data.

    Args:
        folder: The folder of the file; it may exist.
        runs: A multiple of `LEAST_RUNS`.
        options: More keys of the section `slurm`, each after a comma.
    """
    (folder / "data").mkdir(parents=True, exist_ok=True)
    (folder / "data" / "train.csv").write_text("text,label\na,0\n", encoding="utf-8")
    lr = ", ".join(f"{number}e-5" for number in range(1, 11))
    seeds = ", ".join(map(str, range(runs // LEAST_RUNS)))
    path = folder / "s.yaml"
    path.write_text(_SWEEP.format(lr=lr, seeds=seeds, options=options), encoding="utf-8")
    return path
