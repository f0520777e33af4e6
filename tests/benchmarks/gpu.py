"""Model FLOPs utilisation of the GPU cells, as disttrain/analysis/mfu.py defines it."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from disttrain.analysis import mfu
from disttrain.analysis.mfu import ModelSizes, training_flops
from tests.benchmarks.work import Result, Work
from tests.benchmarks.workdata import facts_of

_IMAGE_TOKENS = 197  # 14 x 14 patches of 16 pixels, and the class token


def flops_per_example(work: Work, *, trimmed: bool) -> float:
    """The FLOPs of an example of BERT-base or ViT-B/16; of texts, for one with the mean number of tokens."""
    if work.model == "bert":
        sizes = ModelSizes(768, 12, 3072, classes=2, pooler=True, trimmed=trimmed)
        return training_flops(sizes, facts_of(work.data)["mean_tokens"])
    sizes = ModelSizes(768, 12, 3072, classes=10, patch_values=3 * 16 * 16, trimmed=trimmed)
    return training_flops(sizes, _IMAGE_TOKENS)


def utilisation(work: Work, results: Sequence[Result], device_name: str, *, trimmed: bool) -> float | None:
    """The share of the GPU's peak, without the first step; None if the peak of this GPU is not in the table."""
    rates = [
        run.examples * (run.steps - 1) / run.steps / (run.train_s - run.first_step_s) / work.world_size
        for run in results
    ]
    flops_per_s = statistics.median(rates) * flops_per_example(work, trimmed=trimmed)
    return mfu.utilisation(flops_per_s, device_name, work.precision)
