"""Model FLOPs utilisation of the GPU cells. Not yet run on a GPU."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from tests.benchmarks.work import Result, Work
from tests.benchmarks.workdata import facts_of

# Dense bf16 peaks without sparsity, from NVIDIA's data sheets. The key is a word of the device's name.
_PEAK_FLOPS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12}
_HIDDEN, _LAYERS, _VOCABULARY = 768, 12, 30522  # sizes of BERT-base and ViT-B/16
_IMAGE_TOKENS = 197  # 14 x 14 patches of 16 pixels, and the class token


def flops_per_example(work: Work, *, trimmed: bool) -> float:
    """Forward and backward pass: 6 N T + 12 L H T^2 (Chowdhery et al. 2022, appendix B), N without embeddings.

    In a trimmed last layer, all tokens except the first need only keys and values. They do not use 10 of the layer's
    12 H^2 weights: queries, attention and MLP.
    """
    parameters, tokens = facts_of(work.start)["parameters"], float(_IMAGE_TOKENS)
    if work.model == "bert":
        parameters -= (_VOCABULARY + 512 + 2) * _HIDDEN
        tokens = facts_of(work.data)["mean_tokens"]
    full = 6 * parameters * tokens + 12 * _LAYERS * _HIDDEN * tokens**2
    saved = (tokens - 1) * (60 * _HIDDEN**2 + 12 * _HIDDEN * tokens)
    return full - saved if trimmed else full


def utilisation(work: Work, results: Sequence[Result], device_name: str, *, trimmed: bool) -> float | None:
    """The share of the GPU's peak, without the first step; None if the peak of this GPU is not in the table."""
    peak = next((flops for word, flops in _PEAK_FLOPS.items() if word in device_name), None)
    if peak is None:
        return None
    rates = [
        run.examples * (run.steps - 1) / run.steps / (run.train_s - run.first_step_s) / work.world_size
        for run in results
    ]
    return statistics.median(rates) * flops_per_example(work, trimmed=trimmed) / peak
