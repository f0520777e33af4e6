"""What both families ask of transformers: a classifier from a checkpoint, or from an architecture."""

from __future__ import annotations

import dataclasses
import difflib
import pickle
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import nn
from transformers import PretrainedConfig
from transformers.utils import logging

from disttrain.errors import UserError
from disttrain.models.family import BuiltModel

# Fields of a transformers config that a run settles itself.
_NOT_ARCHITECTURE = {
    "id2label": "the dataset's classes decide it",
    "label2id": "the dataset's classes decide it",
    "problem_type": "it is always the classification of one label",
    "dtype": "precision decides it",
    "return_dict": "it changes no result",
    "transformers_version": "it changes no result",
    "architectures": "model decides it",
}
# Parts that a checkpoint of another task lacks. Anything else that is missing means another model's file.
_HEAD_PARTS = ("classifier", "pooler", "score")

# What the constructors raise on values that do not fit together.
_NO_MODEL = (
    StrictDataclassError,
    ValueError,
    TypeError,
    RuntimeError,
    ArithmeticError,
    LookupError,
    AssertionError,
    AttributeError,
)


def silence_transformers() -> None:
    """No progress bars and no advice from transformers: what matters of it becomes a notice of the run."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    warnings.filterwarnings("ignore", module="transformers")


def from_checkpoint(
    model_class: Any, checkpoint: str, config: PretrainedConfig, label_names: Sequence[str], **options: Any
) -> BuiltModel:
    """A classifier with the checkpoint's weights, and a new head where the checkpoint's does not fit.

    Raises:
        UserError: The checkpoint cannot be loaded, or is another model's.
    """
    before = [name for _, name in sorted((config.id2label or {}).items())]
    config.update(_classes(label_names))
    try:
        model, loaded = model_class.from_pretrained(
            checkpoint,
            config=config,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            # Whatever a checkpoint is stored as, fp32 is trained: transformers would keep half precision, in which the
            # small steps of AdamW are lost. bf16 is autocast's.
            dtype=torch.float32,
            attn_implementation="sdpa",
            **options,
        )
    except (SafetensorError, pickle.UnpicklingError, EOFError) as error:
        hint = "its weights are not whole: copy or download them again"
        raise checkpoint_error(checkpoint, error, hint) from error
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise checkpoint_error(checkpoint, error) from error
    # Mismatched weights come with both shapes behind their name.
    missing = {*loaded["missing_keys"], *(key[0] for key in loaded["mismatched_keys"])}
    strange = sorted(key for key in missing if not any(part in key for part in _HEAD_PARTS))
    if strange:
        raise UserError(
            f"checkpoint {checkpoint!r} has no weights for {len(strange)} parts of the model, {strange[0]} among them",
            hint=f"is it a {config.model_type} model?",
        )
    notice = f"{checkpoint} has no head for {len(label_names)} classes: {', '.join(sorted(missing))} start at random"
    return BuiltModel(model, (notice,) if missing else _order_classes(model, checkpoint, before, label_names))


def _order_classes(model: nn.Module, checkpoint: str, before: Sequence[str], now: Sequence[str]) -> tuple[str, ...]:
    """Puts the rows of a trained head into the order of the data's classes, where the checkpoint has them in another.

    Returns:
        What the user should know.
    """
    rows = {name.lower(): row for row, name in enumerate(before)}
    order = [rows.get(name.lower(), -1) for name in now]
    if sorted(order) != list(range(len(before))) or order == sorted(order):
        return ()  # other classes, or names like LABEL_0 that tell nothing; or the same order
    head = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
    if head.out_features != len(now):
        return (f"{checkpoint} has its classes in the order {', '.join(before)}, the data in that of {', '.join(now)}",)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.copy_(parameter[order].clone())
    orders = f"{', '.join(before)}: the rows of its head are put in the order of the data, {', '.join(now)}"
    return (f"{checkpoint} has its classes in the order {orders}",)


def read_config(config_class: Any, checkpoint: str) -> PretrainedConfig:
    """The transformers config of a checkpoint.

    Raises:
        UserError: There is none.
    """
    try:
        config: PretrainedConfig = config_class.from_pretrained(checkpoint)
    except (OSError, ValueError, KeyError, StrictDataclassError) as error:
        raise checkpoint_error(checkpoint, error) from error
    return config


def checkpoint_error(
    checkpoint: str,
    error: Exception,
    hint: str = "give a folder or a hub id that this host can reach or has in its cache",
) -> UserError:
    reason = next(iter(str(error).splitlines()), type(error).__name__)
    return UserError(f"checkpoint {checkpoint!r} cannot be loaded: {reason}", hint=hint)


def from_architecture(
    config_class: Any, model_class: Any, architecture: Mapping[str, Any], label_names: Sequence[str], **settled: Any
) -> BuiltModel:
    """A classifier with random weights.

    Args:
        config_class: The family's transformers config.
        model_class: The family's transformers model.
        architecture: Fields of the config, as the user wrote them.
        label_names: One for each class.
        settled: Fields of the config that other fields of the run decide.

    Raises:
        UserError: A field is unknown, or the values make no model.
    """
    known = [field.name for field in dataclasses.fields(config_class) if field.name not in _NOT_ARCHITECTURE]
    for name, value in architecture.items():
        where = f"architecture.{name}"
        if name in _NOT_ARCHITECTURE:
            raise UserError(f"{name!r} cannot be set here", where=where, hint=_NOT_ARCHITECTURE[name])
        if name in settled and settled[name] != value:
            raise UserError(f"{value!r} contradicts the run's {settled[name]!r}", where=where, hint="drop it here")
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {close[0]}?" if close else f"the fields are: {', '.join(known)}"
            raise UserError(f"unknown field {name!r} of {config_class.__name__}", where=where, hint=hint)
    try:
        config = config_class(**{**architecture, **settled}, **_classes(label_names))
        # The class's own constructor reads the attention from the config; "sdpa" is its default where it is set there.
        config._attn_implementation = "sdpa"
        return BuiltModel(model_class(config))
    except _NO_MODEL as error:
        reason = str(error) or type(error).__name__
        message = f"no {config_class.model_type} model has these values: {reason}"
        raise UserError(message, where="architecture") from error


def _classes(label_names: Sequence[str]) -> dict[str, Any]:
    return {
        "id2label": dict(enumerate(label_names)),
        "label2id": {name: index for index, name in enumerate(label_names)},
        "problem_type": "single_label_classification",  # whatever a checkpoint was trained for: it is saved as trained
    }
