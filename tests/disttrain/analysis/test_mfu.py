"""The FLOPs of a training step are those that torch counts, and the peaks are found by the GPU's name."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import BertConfig, ViTConfig
from transformers.models.bert.modeling_bert import BertForSequenceClassification
from transformers.models.vit.modeling_vit import ViTForImageClassification, ViTLayer

from disttrain.analysis.mfu import ModelSizes, peak_flops, training_flops, utilisation
from disttrain.models import bert, vit

SIZES: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 48}
OF_BERT = ModelSizes(32, 3, 48, classes=5, pooler=True)
OF_VIT = ModelSizes(32, 3, 48, classes=5, patch_values=3 * 4 * 4)


def counted(model: Any, **inputs: torch.Tensor) -> int:
    with FlopCounterMode(display=False) as counter:
        model(**inputs).logits.sum().backward()
    return int(counter.get_total_flops())


@pytest.mark.parametrize("trimmed", [False, True])
@pytest.mark.parametrize("tokens", [2, 11])
def test_bert_executes_these_flops(tokens: int, trimmed: bool) -> None:
    config = BertConfig(**SIZES, vocab_size=20, num_labels=5, attn_implementation="eager")
    model: Any = BertForSequenceClassification(config)
    sizes = OF_BERT
    if trimmed:
        model.bert.encoder.layer[-1].__class__ = bert.FirstTokenLayer
        sizes = ModelSizes(**{**vars(OF_BERT), "trimmed": True})
    ids = torch.ones(1, tokens, dtype=torch.int64)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        assert counted(model, input_ids=ids) == training_flops(sizes, tokens)


@pytest.mark.parametrize("trimmed", [False, True])
def test_vit_executes_these_flops(trimmed: bool) -> None:
    config = ViTConfig(**SIZES, image_size=12, patch_size=4, num_labels=5, attn_implementation="eager")
    model: Any = ViTForImageClassification(config)
    sizes = OF_VIT
    if trimmed:
        layers = [module for module in model.modules() if isinstance(module, ViTLayer)]
        layers[-1].__class__ = vit.FirstTokenLayer
        sizes = ModelSizes(**{**vars(OF_VIT), "trimmed": True})
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        assert counted(model, pixel_values=torch.ones(1, 3, 12, 12)) == training_flops(sizes, 10)


@pytest.mark.parametrize(
    ("name", "precision", "peak"),
    [
        ("NVIDIA H200", "bf16", 989e12),
        ("NVIDIA H100 80GB HBM3", "fp32", 67e12),
        ("NVIDIA H100 PCIe", "bf16", 756e12),
        ("NVIDIA A100-SXM4-80GB", "tf32", 156e12),
        ("NVIDIA L40S", "bf16", 362e12),
        ("NVIDIA L4", "bf16", 121e12),
        ("Tesla V100-SXM2-32GB", "fp16", 125e12),
        ("Tesla V100-PCIE-16GB", "fp16", 112e12),
        ("Tesla V100-PCIE-16GB", "fp32", 14e12),
        ("Tesla V100-FHHL-16GB", "fp16", None),
        ("Tesla T4", "bf16", None),
        ("NVIDIA GeForce GT 1030", "bf16", None),
        ("NVIDIA A1000", "bf16", None),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", "bf16", None),
        ("NVIDIA A100-SXM4-40GB MIG 3g.20gb", "fp32", None),
    ],
)
def test_peaks_by_name(name: str, precision: str, peak: float | None) -> None:
    assert peak_flops(name, precision) == peak


def test_utilisation_is_a_share_of_the_peak() -> None:
    assert utilisation(98.9e12, "NVIDIA H200", "bf16") == pytest.approx(0.1)
    assert utilisation(1e12, "an unknown GPU", "bf16") is None
