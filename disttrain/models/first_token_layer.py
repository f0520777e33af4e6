"""Computes a classifier's last layer for the first token only, because the head reads no other token.

The last layer needs only the keys and values of the other tokens: no queries, no attention, no MLP. The scores and all
gradients are the same. A model of n layers saves nearly 1/n of its work. Dropout draws fewer random numbers, so a run
with dropout gives another random sample of the same model.
"""

from __future__ import annotations

import math
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from disttrain.models.model_change import ModelChange

_FIELD = "trim_last_layer"


def trim(model: nn.Module, trimmed: Any) -> ModelChange:
    """Changes the last layer to compute its first token only, after checking that the token stays the same.

    Args:
        model: A transformers model whose head reads the first token only. The weights and their names do not change.
        trimmed: A subclass of the layers' class, with the new ``forward`` of the last layer.

    Returns:
        The outcome. The layer is unchanged if this version of transformers computes it in another way.
    """
    layers: list[Any] = [module for module in model.modules() if isinstance(module, trimmed.__base__)]
    if not layers:
        return ModelChange(_FIELD, "the model has no layer of a supported class")
    try:
        same = _same_first_token(layers[-1], trimmed)
    except Exception as error:  # noqa: BLE001 - a layer of another version may raise anything
        return ModelChange(_FIELD, f"the last layer is not supported ({type(error).__name__})")
    if not same:
        return ModelChange(_FIELD, "the trimmed last layer would compute other values")
    layers[-1].__class__ = trimmed
    return ModelChange(_FIELD)


def _same_first_token(layer: Any, trimmed: Any) -> bool:
    """Compares both layers on some tokens, in double precision, so that ranks on different CPUs decide the same."""
    # Copied directly as double: copying the weights first and converting them afterwards would cost both at the start.
    weights = {id(weight): nn.Parameter(weight.detach().double()) for weight in layer.parameters()}
    copy = deepcopy(layer, weights).eval()
    norm = next(module for module in copy.modules() if isinstance(module, nn.LayerNorm))
    shape = (2, 5, norm.normalized_shape[0])  # 2 texts of 5 tokens, without drawing random numbers
    tokens = torch.arange(math.prod(shape), dtype=torch.float64).sin().view(shape)
    mask = torch.ones(2, 1, 1, 5, dtype=torch.bool)
    mask[1, ..., -1] = False  # the last token of the second text is padding
    with torch.no_grad():
        expected = copy(tokens, mask)[:, :1]
        copy.__class__ = trimmed
        actual = copy(tokens, mask)
    return bool((actual - expected).abs().max() <= 1e-6 * expected.abs().max())


def attend_from_first(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, *, heads: int, dropout: float, scale: float
) -> Tensor:
    """Attention of the first token to all tokens.

    Args:
        query: The query of the first token, (examples, 1, heads x size).
        key: The keys, (examples, tokens, heads x size).
        value: The values, in the shape of the keys.
        mask: The mask of the full layer, (examples, 1, 1 or tokens, tokens): bool, true where a token is attended to,
            or float, added to the scores. None: all tokens are attended to.
        heads: The number of attention heads.
        dropout: The fraction of the attention weights that are dropped.
        scale: The factor of the products of queries and keys.

    Returns:
        (examples, 1, heads x size).
    """
    query, key, value = (part.view(*part.shape[:2], heads, -1).transpose(1, 2) for part in (query, key, value))
    if mask is not None:
        mask = mask[:, :, :1]
    attended = scaled_dot_product_attention(query, key, value, mask, dropout_p=dropout, scale=scale)
    return attended.transpose(1, 2).flatten(2)
