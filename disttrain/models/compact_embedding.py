"""An embedding that trains only the rows of tokens that occur in the data."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import embedding

from disttrain.models.model_change import ModelChange

_FIELD = "compact_vocab"


class CompactEmbedding(nn.Module):
    """An embedding for the ids of the full vocabulary, with weights for the tokens that occur only.

    In a small model most weights are rows of tokens that do not occur in the data. These rows get no gradient: AdamW
    only decays them, and their part of the all-reduce and of the optimizer step has no other effect.

    One additional row of ones belongs to no token. It decays as the rows that are left out would.

    Args:
        full: The embedding of all tokens.
        used: The ids of the tokens that occur, sorted.
    """

    row_of: Tensor

    def __init__(self, full: nn.Embedding, used: NDArray[np.int64]) -> None:
        super().__init__()
        self.num_embeddings, self.embedding_dim = full.weight.shape
        self._used = torch.from_numpy(used)
        self._left_out = (full.weight.detach().clone(),)  # the tuple keeps it on the CPU and out of the state
        rows = full.weight.detach()[self._used]
        self.weight = nn.Parameter(torch.cat([rows, torch.ones(1, self.embedding_dim, dtype=rows.dtype)]))
        row_of = torch.zeros(self.num_embeddings, dtype=torch.int64)
        row_of[self._used] = torch.arange(len(used))
        self.register_buffer("row_of", row_of, persistent=False)
        self.padding_idx: int | None = None
        if full.padding_idx is not None and full.padding_idx in used:
            self.padding_idx = int(row_of[full.padding_idx])

    def forward(self, token_ids: Tensor) -> Tensor:
        return embedding(self.row_of[token_ids], self.weight, self.padding_idx)

    @property
    def published(self) -> Tensor:
        """The rows of all tokens before training, on the CPU."""
        return self._left_out[0]

    def full_weight(self) -> Tensor:
        """The rows of all tokens, on the CPU, with the values they would have if all had been trained."""
        trained = self.weight.detach().cpu()
        rows = self._left_out[0] * trained[-1]
        rows[self._used] = trained[:-1]
        return rows


def compact(model: Any, used: NDArray[np.int64]) -> ModelChange:
    """Replaces the token embedding of a transformers model by a compact one.

    Returns:
        The outcome. The model is unchanged if its embedding is of another class or shares its weights.
    """
    full = model.get_input_embeddings()
    if type(full) is not nn.Embedding:
        return ModelChange(_FIELD, f"the token embedding is of class {type(full).__name__}, not nn.Embedding")
    names = [name for name, value in model.state_dict().items() if value.data_ptr() == full.weight.data_ptr()]
    if len(names) != 1:
        return ModelChange(_FIELD, "the token embedding is tied to other weights")
    model.set_input_embeddings(CompactEmbedding(full, used))
    return ModelChange(_FIELD)


def left_out_rows(model: nn.Module) -> list[NDArray[np.float32]]:
    """The published rows of every token, from which the saved model takes those that are not trained."""
    return [module.published.numpy() for module in model.modules() if isinstance(module, CompactEmbedding)]


def full_state(model: nn.Module) -> dict[str, Tensor]:
    """The model's state with the rows of all tokens, as the published model has it."""
    state: dict[str, Tensor] = model.state_dict()
    full_weights = {
        f"{name}.weight": module.full_weight()
        for name, module in model.named_modules()
        if isinstance(module, CompactEmbedding)
    }
    return {**state, **full_weights}
