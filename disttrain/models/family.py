"""What a model family brings; run and train know no family but by this Protocol."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from torch import nn

from disttrain.config.train_config import FAMILIES, TrainConfig
from disttrain.data.batches import Examples
from disttrain.distributed.group import Group
from disttrain.errors import UserError

if TYPE_CHECKING:
    # It imports `datasets`, with pandas: a family imports it behind its model. In the course of a model's import torch
    # registers operators and looks through all modules for each, which takes 0.2 s longer with those of pandas there.
    from disttrain.data.splits import InputKind, Splits


@dataclass(frozen=True)
class EncodedSplits:
    """Both splits as a family's model takes them."""

    train: Examples
    eval: Examples | None  # None: the config asks for no evaluation
    label_names: tuple[str, ...]
    notices: tuple[str, ...] = ()
    reader: Any = None  # what turned raw examples into these, for build and save: a tokenizer, say


@dataclass(frozen=True)
class BuiltModel:
    """A model whose forward takes a batch and gives class scores, (examples, classes)."""

    model: nn.Module
    notices: tuple[str, ...] = ()
    # Writes the trained model and what it reads its input with into a folder, as `from_pretrained` opens them.
    save: Callable[[Path], None] | None = None


class Family(Protocol):
    """What makes a model family: the names that bert.py and vit.py define, or the attributes of a class of your own.

    A class is made an object of without arguments. It may use whatever a run has, and needs to change nothing here.
    """

    @property
    def INPUT(self) -> InputKind:
        """What an example is made of: text or image."""

    def encode(self, config: TrainConfig, splits: Splits, group: Group, work_dir: Path) -> EncodedSplits:
        """The splits as tensors; `work_dir` is the run's folder, for what the ranks must share.

        What `Examples.batch` gives must depend on its indices alone: workers make batches in any order, and a run that
        goes on from a checkpoint draws no random numbers again but torch's, in the forward pass.
        """

    def build(self, config: TrainConfig, encoded: EncodedSplits) -> BuiltModel:
        """The model on the CPU, the same weights on every rank: torch has been seeded."""


def load_family(model: str) -> Family:
    """The family, imported only now: a BERT run does not pay for ViT's imports.

    Args:
        model: bert, vit or ``package.module:Family``, found as Python finds any module.

    Raises:
        UserError: There is no such module, or it has no such family.
    """
    if model in FAMILIES:
        built_in: Family = importlib.import_module(f"disttrain.models.{model}")
        return built_in
    module_name, _, name = model.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise  # the module is there, and imports another that is not: its traceback says which
        looked = "beside the sweep's YAML, in the working directory or among the installed packages"
        raise UserError(f"model {model!r}: no module {error.name!r}", hint=f"it must lie {looked}") from None
    found = getattr(module, name, None)
    if found is None:
        raise UserError(f"model {model!r}: module {module_name!r} has no {name!r}")
    family: Family = found() if isinstance(found, type) else found
    missing = [part for part in ("INPUT", "encode", "build") if not hasattr(family, part)]
    if missing:
        raise UserError(
            f"model {model!r} is no family: it lacks {', '.join(missing)}", hint="see disttrain.models.family.Family"
        )
    return family
