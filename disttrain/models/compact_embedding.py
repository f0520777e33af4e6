"""An embedding of which only the rows of tokens that occur are trained."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import embedding


class CompactEmbedding(nn.Module):
    """Takes the token ids of a whole vocabulary, and holds the rows of those that occur.

    Most of a small model's weights are rows of tokens that a data set does not have. They get no gradient, so that
    AdamW only decays them; their share of the exchange between ranks and of the optimizer's step is spent on nothing.

    One row more, of ones, belongs to no token: it decays as the rows that were left out would have.

    Args:
        whole: The embedding of all tokens.
        used: Ids of the tokens that occur, in order.
    """

    row_of: Tensor

    def __init__(self, whole: nn.Embedding, used: NDArray[np.int64]) -> None:
        super().__init__()
        self.num_embeddings, self.embedding_dim = whole.weight.shape
        self._used = torch.from_numpy(used)
        self._left_out = (whole.weight.detach().clone(),)  # in a tuple it is no state, and stays on the CPU
        rows = whole.weight.detach()[self._used]
        self.weight = nn.Parameter(torch.cat([rows, torch.ones(1, self.embedding_dim, dtype=rows.dtype)]))
        row_of = torch.zeros(self.num_embeddings, dtype=torch.int64)
        row_of[self._used] = torch.arange(len(used))
        self.register_buffer("row_of", row_of, persistent=False)
        padding = whole.padding_idx
        self.padding_idx = int(row_of[padding]) if padding is not None and padding in used else None

    def forward(self, token_ids: Tensor) -> Tensor:
        return embedding(self.row_of[token_ids], self.weight, self.padding_idx)

    def whole_weight(self) -> Tensor:
        """The rows of all tokens as they would be now, had all been trained; on the CPU."""
        trained = self.weight.detach().cpu()
        rows = self._left_out[0] * trained[-1]
        rows[self._used] = trained[:-1]
        return rows


def compact(model: Any, used: NDArray[np.int64]) -> tuple[str, CompactEmbedding] | None:
    """Puts a compact embedding into a transformers model in place of its own.

    Returns:
        (name of the embedding's weights in the model's state, the embedding); None where the model has an embedding of
        another kind, or uses its weights elsewhere too: nothing is changed then.
    """
    whole = model.get_input_embeddings()
    if type(whole) is not nn.Embedding:
        return None
    names = [name for name, value in model.state_dict().items() if value.data_ptr() == whole.weight.data_ptr()]
    if len(names) != 1:
        return None
    embedding_of_used = CompactEmbedding(whole, used)
    model.set_input_embeddings(embedding_of_used)
    return names[0], embedding_of_used
