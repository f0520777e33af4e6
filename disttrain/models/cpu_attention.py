"""Attention with dropout on a CPU, for transformers models.

torch has no fused attention with dropout on a CPU. It computes the parts one after the other, with its own dropout, in
fp32 also under bf16 autocast, and checks each row for scores that are all masked.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import softmax
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from disttrain.models import cpu_dropout

_NAME = "cpu_dropout"


def use_cpu_attention(model: Any) -> None:
    """Changes the attention of a transformers model that trains on the CPU."""
    AttentionInterface.register(_NAME, attend)
    AttentionMaskInterface.register(_NAME, sdpa_mask)
    model.config._attn_implementation = _NAME


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    dropout: float = 0.0,
    scaling: float,
    **options: Any,
) -> tuple[Tensor, None]:
    """Attention, as transformers calls it; without dropout torch's own.

    Args:
        module: The attention module.
        query: (examples, heads, tokens, size).
        key: In the shape of the query.
        value: In the shape of the query.
        attention_mask: Bool, true where a token is attended to; of a shape that can be expanded to (examples, heads,
            tokens, tokens). None: all tokens are attended to.
        dropout: The probability that an attention weight is dropped.
        scaling: The factor of the products of queries and keys.
        options: Other arguments of transformers.

    Returns:
        (examples, tokens, heads, size), and no attention weights.
    """
    if not 0 < dropout < 1:
        attended: Tensor = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **options
        )[0]
        return attended, None
    scores = (query * scaling) @ key.transpose(2, 3)
    if attention_mask is not None:
        # Not -inf: in a row of an empty text all tokens are masked, and its weights would be NaN.
        scores = scores.masked_fill(~attention_mask, torch.finfo(scores.dtype).min)
    weights = cpu_dropout.dropout(softmax(scores, dim=-1), dropout)
    return (weights @ value).transpose(1, 2), None
