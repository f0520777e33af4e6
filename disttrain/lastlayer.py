"""A classifier's last layer, computed for the first token alone: it is all that the head reads.

Of the other tokens the last layer needs keys and values only: no queries, no attention, no MLP. What comes out of the
head, and every gradient, is the same; a model of n layers spends nearly a part in n less on it. (Dropout draws fewer
random numbers, so that a run with it is another draw, not another model.)
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

_WHOLE = "trim_last_layer: the last layer is computed whole, of a kind that is not known here"


def trim(model: nn.Module, trimmed: Any) -> tuple[str, ...]:
    """Makes the last layer one that gives its first token alone, where that token comes out the same.

    Args:
        model: A transformers model whose head reads the first token alone. The weights, and their names, stay.
        trimmed: A subclass of its layers' class, with the ``forward`` that the last one is to have.

    Returns:
        What the user should know; empty where it was done. Another version of transformers may compute a layer in
        another way.
    """
    layer: Any = next(
        (module for module in reversed(list(model.modules())) if isinstance(module, trimmed.__base__)), None
    )
    if layer is None:
        return (_WHOLE,)
    whole = type(layer)
    training = layer.training
    layer.eval()
    try:
        with torch.no_grad():
            tokens = _some_tokens(layer)
            # The last token of the second text is padding.
            mask = torch.ones(2, 1, 1, tokens.shape[1], dtype=torch.bool)
            mask[1, ..., -1] = False
            expected = layer(tokens, mask)[:, :1]
            layer.__class__ = trimmed
            same = torch.allclose(layer(tokens, mask), expected, rtol=1e-4, atol=1e-5)
    except (AttributeError, TypeError, RuntimeError):
        same = False
    layer.__class__ = trimmed if same else whole
    layer.train(training)
    return () if same else (_WHOLE,)


def _some_tokens(layer: nn.Module) -> Tensor:
    """Hidden states that draw no random numbers: (2 texts, 5 tokens, hidden size)."""
    norm = next(module for module in layer.modules() if isinstance(module, nn.LayerNorm))
    hidden_size = norm.normalized_shape[0]
    return torch.arange(2 * 5 * hidden_size, dtype=torch.float32).sin().view(2, 5, hidden_size)


def attend_from_first(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, *, heads: int, dropout: float, scale: float
) -> Tensor:
    """Attention of the first token to all.

    Args:
        query: (examples, 1, heads x size).
        key: (examples, tokens, heads x size).
        value: As key.
        mask: Of the whole layer, (examples, 1, 1 or tokens, tokens): what is attended to, or is added; None: to all.
        heads: Attention heads.
        dropout: Share of the attention weights that are dropped.
        scale: Factor of the products of queries and keys.

    Returns:
        (examples, 1, heads x size).
    """
    query, key, value = (part.view(*part.shape[:2], heads, -1).transpose(1, 2) for part in (query, key, value))
    of_first = None if mask is None else mask[:, :, :1]
    attended = scaled_dot_product_attention(query, key, value, of_first, dropout_p=dropout, scale=scale)
    return attended.transpose(1, 2).flatten(2)
