"""Model FLOPs utilisation of the GPU cells. Not yet run: no GPU was at hand when it was written."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from tests.benchmarks.work import Result, Work
from tests.benchmarks.workdata import facts_of

# Dense bf16 peaks without sparsity, from NVIDIA's data sheets; by a word of the device's name.
_PEAK_FLOPS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12}
_HIDDEN, _LAYERS, _VOCABULARY = 768, 12, 30522  # of BERT-base and ViT-B/16
_IMAGE_TOKENS = 197  # 14 x 14 patches of 16 pixels, and the class token


def flops_per_example(work: Work, *, trimmed: bool) -> float:
    """Forward and backward: 6 N T + 12 L H T^2 (Chowdhery et al. 2022, appendix B), N without embeddings.

    Of a trimmed last layer all tokens but the first need keys and values alone: 10 of the layer's 12 H^2 weights, its
    queries, attention and MLP, are not for them.
    """
    parameters, tokens = facts_of(work.start)["parameters"], float(_IMAGE_TOKENS)
    if work.model == "bert":
        parameters -= (_VOCABULARY + 512 + 2) * _HIDDEN
        tokens = facts_of(work.data)["mean_tokens"]
    whole = 6 * parameters * tokens + 12 * _LAYERS * _HIDDEN * tokens**2
    saved = (tokens - 1) * (60 * _HIDDEN**2 + 12 * _HIDDEN * tokens)
    return whole - saved if trimmed else whole


def utilisation(work: Work, results: Sequence[Result], device_name: str, *, trimmed: bool) -> float | None:
    """Share of the GPU's peak, without the first step; None where the peak is not known here."""
    peak = next((flops for word, flops in _PEAK_FLOPS.items() if word in device_name), None)
    if peak is None:
        return None
    rates = [
        run.examples * (run.steps - 1) / run.steps / (run.train_s - run.first_step_s) / work.world_size
        for run in results
    ]
    return statistics.median(rates) * flops_per_example(work, trimmed=trimmed) / peak
