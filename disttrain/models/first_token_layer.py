"""A classifier's last layer, computed for the first token alone: it is all that the head reads.

Of the other tokens the last layer needs keys and values only: no queries, no attention, no MLP. What comes out of the
head, and every gradient, is the same; a model of n layers spends nearly a part in n less on it. (Dropout draws fewer
random numbers, so that a run with it is another draw, not another model.)
"""

from __future__ import annotations

import math
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

_WHOLE = "trim_last_layer: the last layer is computed whole"


def trim(model: nn.Module, trimmed: Any) -> tuple[str, ...]:
    """Makes the last layer one that gives its first token alone, where that token comes out the same.

    Args:
        model: A transformers model whose head reads the first token alone. The weights, and their names, stay.
        trimmed: A subclass of its layers' class, with the ``forward`` that the last one is to have.

    Returns:
        What the user should know; empty where it was done. Another version of transformers may compute a layer in
        another way.
    """
    layers: list[Any] = [module for module in model.modules() if isinstance(module, trimmed.__base__)]
    if not layers:
        return (f"{_WHOLE}: there is none of the kind that is known here",)
    try:
        same = _gives_the_same(layers[-1], trimmed)
    except Exception as error:  # noqa: BLE001 - whatever a layer of another version raises
        return (f"{_WHOLE}: of a kind that is not known here ({type(error).__name__})",)
    if not same:
        return (f"{_WHOLE}: for its first token alone it would give other numbers",)
    layers[-1].__class__ = trimmed
    return ()


def _gives_the_same(layer: Any, trimmed: Any) -> bool:
    """Compares both on some tokens: in double precision, so that ranks on other CPUs decide alike."""
    # Copied as such at once: of weights that are copied first and made double then, a start would pay for both.
    weights = {id(weight): nn.Parameter(weight.detach().double()) for weight in layer.parameters()}
    copy = deepcopy(layer, weights).eval()
    norm = next(module for module in copy.modules() if isinstance(module, nn.LayerNorm))
    shape = (2, 5, norm.normalized_shape[0])  # 2 texts of 5 tokens, for which no random numbers are drawn
    tokens = torch.arange(math.prod(shape), dtype=torch.float64).sin().view(shape)
    mask = torch.ones(2, 1, 1, 5, dtype=torch.bool)
    mask[1, ..., -1] = False  # the last token of the second text is padding
    with torch.no_grad():
        expected = copy(tokens, mask)[:, :1]
        copy.__class__ = trimmed
        found = copy(tokens, mask)
    return bool((found - expected).abs().max() <= 1e-6 * expected.abs().max())


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
