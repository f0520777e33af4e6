"""Model FLOPs utilisation (MFU): the share of a GPU's peak that the products of a training step use."""

from __future__ import annotations

import re
from dataclasses import dataclass

# Dense peaks in FLOP/s, without sparsity, from NVIDIA's data sheets; the first name that matches counts. fp32 is the
# peak outside the tensor cores. A GPU with slower variants (PCIe, NVL) has them first. V100: the sheet of January 2020.
_PEAKS: tuple[tuple[str, dict[str, float]], ...] = (
    (r"B200", {"bf16": 2250e12, "fp16": 2250e12, "tf32": 1125e12, "fp32": 75e12}),
    (r"H100 PCIe", {"bf16": 756e12, "fp16": 756e12, "tf32": 378e12, "fp32": 51e12}),
    (r"H100 NVL", {"bf16": 835e12, "fp16": 835e12, "tf32": 417e12, "fp32": 60e12}),
    (r"H200 NVL", {"bf16": 835e12, "fp16": 835e12, "tf32": 417e12, "fp32": 60e12}),
    (r"H100|H200|GH200", {"bf16": 989e12, "fp16": 989e12, "tf32": 494e12, "fp32": 67e12}),
    (r"A100", {"bf16": 312e12, "fp16": 312e12, "tf32": 156e12, "fp32": 19.5e12}),
    (r"L40S", {"bf16": 362e12, "fp16": 362e12, "tf32": 183e12, "fp32": 91.6e12}),
    (r"L4", {"bf16": 121e12, "fp16": 121e12, "tf32": 60e12, "fp32": 30.3e12}),
    (r"A10", {"bf16": 125e12, "fp16": 125e12, "tf32": 62.5e12, "fp32": 31.2e12}),
    (r"V100-PCIE", {"fp16": 112e12, "fp32": 14e12}),
    (r"V100-SXM2", {"fp16": 125e12, "fp32": 15.7e12}),
    (r"T4", {"fp16": 65e12, "fp32": 8.1e12}),
)


@dataclass(frozen=True)
class ModelSizes:
    """The sizes of BERT or ViT that decide its products.

    Attributes:
        hidden: The width H of a token.
        layers: The number of layers.
        intermediate: The width I of the MLP.
        classes: The number C of classes.
        pooler: Whether a layer of H x H weights is before the head, as in BERT.
        patch_values: The numbers P of a patch, as 3 x 16 x 16; 0 for texts, whose embedding is no product.
        trimmed: Whether the last layer computes its first token only.
    """

    hidden: int
    layers: int
    intermediate: int
    classes: int
    pooler: bool = False
    patch_values: int = 0
    trimmed: bool = False


def training_flops(sizes: ModelSizes, tokens: float) -> float:
    """The FLOPs that a training step executes for one example: all products, of the forward and the backward pass.

    For T tokens the forward pass of a layer takes 8 T H^2 (queries, keys, values, output), 4 T H I (MLP) and 4 T^2 H
    (attention). A trimmed layer takes 4 T H^2 for keys and values, and the rest for one token only. The pooler takes
    2 H^2, the head 2 H C, the patches 2 (T - 1) P H. The backward pass takes twice as much, but only once as much for
    the patches, whose input needs no gradient. What a kernel computes a second time, as fused attention does in its
    backward pass, does not count; neither does padding, nor what is no product.

    Args:
        sizes: The sizes of the model.
        tokens: The tokens T of the example, with special tokens.
    """
    hidden, intermediate = sizes.hidden, sizes.intermediate
    layer = 8 * tokens * hidden**2 + 4 * tokens * hidden * intermediate + 4 * tokens**2 * hidden
    last = layer
    if sizes.trimmed:
        last = 4 * (tokens + 1) * hidden**2 + 4 * hidden * intermediate + 4 * tokens * hidden
    head = 2 * hidden * sizes.classes
    if sizes.pooler:
        head += 2 * hidden**2
    patches = 2 * max(0, tokens - 1) * sizes.patch_values * hidden
    return 3 * ((sizes.layers - 1) * layer + last + head) + 2 * patches


def peak_flops(device_name: str, precision: str) -> float | None:
    """The peak of a GPU in FLOP/s; None if it is not in the table, or for a MIG slice, which has a part of the GPU.

    Args:
        device_name: The name of the GPU, as torch reports it.
        precision: The precision of the products: fp32, tf32, fp16 or bf16.

    Example:
        >>> peak_flops("NVIDIA H100 80GB HBM3", "bf16")
        989000000000000.0
    """
    if re.search(r"\bMIG\b", device_name):
        return None
    for name, peaks in _PEAKS:
        if re.search(rf"\b({name})\b", device_name):
            return peaks.get(precision)
    return None


def utilisation(flops_per_s: float, device_name: str, precision: str) -> float | None:
    """The MFU of one GPU: executed FLOPs in a second, as a share of the peak; None if the peak is not known.

    Args:
        flops_per_s: `training_flops` of an example, times the examples that this GPU trains in a second.
        device_name: The name of the GPU.
        precision: The precision of the products.
    """
    peak = peak_flops(device_name, precision)
    if peak is None:
        return None
    return flops_per_s / peak
