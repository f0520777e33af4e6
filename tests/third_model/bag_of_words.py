"""A bag of words: a linear classifier over word counts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from disttrain.api import Batch, BuiltModel, EncodedSplits, Group, Indices, Split, Splits, TrainConfig


class WordCounts:
    """The examples of one split: counts, [examples, words], and labels, [examples]."""

    in_memory = True
    lengths = None

    def __init__(self, split: Split, column: str, vocabulary: dict[str, int]) -> None:
        self.counts = torch.zeros(len(split), len(vocabulary))
        for row, text in enumerate(split.rows[column][:]):
            for word in text.split():
                if word in vocabulary:
                    self.counts[row, vocabulary[word]] += 1
        self.labels = torch.from_numpy(split.labels)

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, indices: Sequence[int] | Indices) -> Batch:
        rows = torch.from_numpy(np.asarray(indices))
        return {"counts": self.counts[rows], "labels": self.labels[rows]}


class Classifier(nn.Linear):
    def forward(self, batch: Batch) -> Tensor:  # type: ignore[override]
        return super().forward(batch["counts"])


class BagOfWords:
    INPUT = "text"

    def encode(self, config: TrainConfig, splits: Splits, group: Group, work_dir: Path) -> EncodedSplits:
        column = splits.input_column
        words = sorted({word for text in splits.train.rows[column][:] for word in text.split()})
        vocabulary = {word: index for index, word in enumerate(words)}
        held_out = WordCounts(splits.eval, column, vocabulary) if splits.eval else None
        return EncodedSplits(
            WordCounts(splits.train, column, vocabulary), held_out, splits.label_names, reader=vocabulary
        )

    def build(self, config: TrainConfig, encoded: EncodedSplits) -> BuiltModel:
        return BuiltModel(Classifier(len(encoded.reader), len(encoded.label_names)))
