"""What a model family brings; run and train know no family but by this Protocol."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from torch import nn

from disttrain.batches import Examples
from disttrain.config import TrainConfig
from disttrain.data import InputKind, Splits
from disttrain.dist import Group


@dataclass(frozen=True)
class Encoded:
    """Both splits as a family's model takes them."""

    train: Examples
    eval: Examples | None  # None: the config asks for no evaluation
    label_names: tuple[str, ...]
    notices: tuple[str, ...] = ()
    vocab_size: int | None = None  # of a tokenizer made from the training text


@dataclass(frozen=True)
class Built:
    """A model whose forward takes a batch and gives class scores, (examples, classes)."""

    model: nn.Module
    notices: tuple[str, ...] = ()


class Family(Protocol):
    """The names that bert.py and vit.py define."""

    @property
    def INPUT(self) -> InputKind:
        """What an example is made of."""

    def encode(self, config: TrainConfig, splits: Splits, group: Group, work_dir: Path) -> Encoded:
        """The splits as tensors; `work_dir` is the run's folder, for what the ranks must share."""

    def build(self, config: TrainConfig, encoded: Encoded) -> Built:
        """The model on the CPU, the same weights on every rank: torch has been seeded."""


def load_family(model: str) -> Family:
    """The family's module, imported only now: a BERT run does not pay for ViT's imports."""
    module: Family = importlib.import_module(f"disttrain.{model}")
    return module
