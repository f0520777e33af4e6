"""The shape in which a text model gets the mask of its padded batches.

For a 2D mask, (texts, tokens), transformers checks whether it masks anything, and that check makes the host wait for
the GPU once or twice in each padded step. A 4D mask, in the shape of attention, is used as it is. But not every model
reads it, or reads it in the same way, so that a model must prove it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from copy import deepcopy
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from disttrain.data.batches import Batch, Examples

# From a 2D mask to the mask that a model gets.
ShapeMask = Callable[[Tensor], Tensor]


def bidirectional(mask: Tensor) -> Tensor:
    """Each token attends to all tokens of its text: (texts, 1, 1, tokens), true where a token is attended to."""
    return mask[:, None, None, :].bool()


def causal(mask: Tensor) -> Tensor:
    """Each token attends to itself and to earlier tokens of its text: (texts, 1, tokens, tokens)."""
    tokens = mask.shape[-1]
    earlier = torch.ones(tokens, tokens, dtype=torch.bool, device=mask.device).tril()
    return mask[:, None, None, :].bool() & earlier


def as_given(mask: Tensor) -> Tensor:
    """The 2D mask, which every model takes."""
    return mask


def padded_batches(examples: Examples) -> list[Batch]:
    """Small batches with padding: the shortest text with the next longer one, and with the longest."""
    lengths = examples.lengths
    assert lengths is not None, "texts have lengths"
    order = np.argsort(lengths, kind="stable")
    longer = order[lengths[order] > lengths[order[0]]]
    batches = [examples.batch([order[0], other]) for other in (*longer[:1], *longer[-1:])]
    return [batch for batch in batches if "attention_mask" in batch]


def proven_shape(model: nn.Module, batches: Iterable[Mapping[str, Any]]) -> ShapeMask:
    """The first 4D shape with which a model has the same scores, bit by bit, as with the 2D mask; else the 2D mask.

    Args:
        model: A transformers model on the CPU.
        batches: Inputs of padded texts, with a 2D mask; of the lengths that occur.
    """
    padded = list(batches)
    with torch.no_grad():
        for shape in (bidirectional, causal):
            if padded and all(_same_scores(model, inputs, shape) for inputs in padded):
                return shape
    return as_given


def _same_scores(model: nn.Module, inputs: Mapping[str, Any], shape: ShapeMask) -> bool:
    mask = inputs["attention_mask"]
    try:
        expected, actual = (_scores(model, {**inputs, "attention_mask": given}) for given in (mask, shape(mask)))
    except Exception:  # noqa: BLE001 - a model that takes no 4D mask may raise anything
        return False
    return torch.equal(expected, actual)


def _scores(model: nn.Module, inputs: Mapping[str, Any]) -> Tensor:
    """The scores of a copy with the same weights: some models change their way of attention at a short text."""
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    scores: Tensor = deepcopy(model, shared).eval()(**inputs).logits
    return scores
