"""The interface of a model family; the rest of the training core uses families only through this Protocol."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from torch import nn

from disttrain.config.train_config import FAMILIES, TrainConfig
from disttrain.data.batches import Examples
from disttrain.data.sources import InputKind
from disttrain.data.splits import Splits
from disttrain.distributed.group import Group
from disttrain.errors import UserError
from disttrain.models.fewer_imports import import_text_models


@dataclass(frozen=True)
class EncodedSplits:
    """Both splits in the form that the family's model needs."""

    train: Examples
    eval: Examples | None  # None: the config disables evaluation
    label_names: tuple[str, ...]
    notices: tuple[str, ...] = ()
    reader: Any = None  # the object that encoded the examples, for build and save; for example a tokenizer


@dataclass(frozen=True)
class BuiltModel:
    """A model whose forward takes a batch and returns class scores, (examples, classes)."""

    model: nn.Module
    notices: tuple[str, ...] = ()
    # Writes the trained model and its tokenizer or image processor to a folder, in the format of `from_pretrained`.
    save: Callable[[Path], None] | None = None
    # The config fields that changed the model for speed; a field that had no effect is not in it. Empty: the model is
    # as published.
    model_changes: tuple[str, ...] = ()
    # Whether a step may give trained parameters no gradient, which DDP must know; None if the first pass shows it.
    skips_parameters: bool | None = False


class Family(Protocol):
    """A model family: a module like disttrain/models/bert.py, or a class of your own with these attributes.

    A class is instantiated without arguments. It may use everything that a run has, and this package need not change.
    """

    @property
    def INPUT(self) -> InputKind:
        """The kind of the inputs: text or image."""

    def encode(self, config: TrainConfig, splits: Splits, group: Group, work_dir: Path) -> EncodedSplits:
        """The splits as tensors; `work_dir` is the run's folder, for files that the ranks share.

        The result of `Examples.batch` must depend on the indices only. Workers make batches in any order, and a run
        that resumes from a checkpoint restores only the random numbers of torch, for the forward pass.
        """

    def build(self, config: TrainConfig, encoded: EncodedSplits) -> BuiltModel:
        """The model on the CPU, with the same weights on every rank; torch is already seeded."""


def load_family(model: str) -> Family:
    """The family, imported only when it is used, so that a BERT run does not import ViT.

    Args:
        model: bert, vit or ``package.module:Family``, where Python must be able to import the module.

    Raises:
        UserError: The module does not exist, or does not contain the family.
    """
    if model in FAMILIES:
        if model == "bert":
            import_text_models()
        built_in: Family = importlib.import_module(f"disttrain.models.{model}")
        return built_in
    module_name, _, name = model.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise  # the module exists but imports one that does not; the traceback names it
        places = "next to the sweep's YAML, in the working directory or among the installed packages"
        raise UserError(f"model {model!r}: no module {error.name!r}", hint=f"it must be {places}") from None
    attribute = getattr(module, name, None)
    if attribute is None:
        raise UserError(f"model {model!r}: module {module_name!r} has no {name!r}")
    family: Family = attribute() if isinstance(attribute, type) else attribute
    missing = [part for part in ("INPUT", "encode", "build") if not hasattr(family, part)]
    if missing:
        raise UserError(
            f"model {model!r} is not a model family: it lacks {', '.join(missing)}",
            hint="see disttrain.api.Family",
        )
    return family
