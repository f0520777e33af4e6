"""Makes transformers classifiers for both families, from a checkpoint or from an architecture."""

from __future__ import annotations

import dataclasses
import os
import pickle
import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import nn
from transformers import PretrainedConfig
from transformers.utils import logging

from disttrain.config.hub_inputs import fetch_hint
from disttrain.config.train_config import TrainConfig
from disttrain.config.unknown_key import suggest_spelling
from disttrain.errors import UserError, first_line
from disttrain.models.family import BuiltModel

# The fields of a transformers config that the user cannot set, with the reason.
_NOT_ARCHITECTURE = {
    "id2label": "the dataset's classes decide it",
    "label2id": "the dataset's classes decide it",
    "problem_type": "it is always single-label classification",
    "dtype": "precision decides it",
    "return_dict": "it changes no result",
    "transformers_version": "it changes no result",
    "architectures": "model decides it",
}
# Where a checkpoint's config asks for other outputs, a forward pass fails, or keeps what nothing reads.
_OUTPUTS = {"return_dict": True, "output_attentions": False, "output_hidden_states": False, "use_cache": False}
_NO_HEADS = ("pre_classifier", "dense")  # the layers before the head of some models
_GENERIC_NAME = re.compile(r"LABEL_\d+")  # what transformers writes for classes without names

# The errors that the constructors raise for values that do not fit together.
_INVALID_VALUES = (
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
    """Turns off the progress bars and warnings of transformers; the run's notices report what matters."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    warnings.filterwarnings("ignore", module="transformers")


def from_checkpoint(
    model_class: Any, checkpoint: str, config: PretrainedConfig, label_names: Sequence[str], **options: Any
) -> BuiltModel:
    """A classifier with the checkpoint's weights, and a new head if the checkpoint's head does not fit.

    Raises:
        UserError: The checkpoint cannot be loaded, or belongs to another model.
    """
    checkpoint_names = [name for _, name in sorted((config.id2label or {}).items())]
    config.update(_classes(label_names))
    try:
        model, loaded = model_class.from_pretrained(
            checkpoint,
            config=config,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            # Training always uses fp32 weights. transformers would load a half-precision checkpoint in half precision,
            # which loses the small steps of AdamW. bf16 comes from autocast.
            dtype=torch.float32,
            **options,
        )
    except (SafetensorError, pickle.UnpicklingError, EOFError) as error:
        hint = "its weight file is damaged or incomplete: copy or download it again"
        raise checkpoint_error(checkpoint, error, hint) from error
    except (OSError, *_INVALID_VALUES, ImportError) as error:
        raise checkpoint_error(checkpoint, error) from error
    # The keys of mismatched weights are tuples: the name, then both shapes.
    missing = {*loaded["missing_keys"], *(key[0] for key in loaded["mismatched_keys"])}
    outside_head = sorted(key for key in missing if not _is_head(key, model.base_model_prefix))
    if outside_head:
        parts = f"{len(outside_head)} parts of the model, including {outside_head[0]}"
        hint = f"is it a {config.model_type} model?"
        raise UserError(f"checkpoint {checkpoint!r} has no weights for {parts}", hint=hint)
    if missing:
        parts = ", ".join(sorted(missing))
        notice = f"{checkpoint} has no head for {len(label_names)} classes: {parts} start at random"
        return BuiltModel(model, (notice,))
    return BuiltModel(model, _order_classes(model, checkpoint, checkpoint_names, label_names))


def _is_head(key: str, base: str) -> bool:
    """Whether a checkpoint of another task may lack a weight: it is outside the base model, or part of its pooler."""
    return not key.startswith(f"{base}.") or ".pooler." in key


def _order_classes(
    model: nn.Module, checkpoint: str, checkpoint_names: Sequence[str], label_names: Sequence[str]
) -> tuple[str, ...]:
    """Reorders the rows of a trained head if the checkpoint has its classes in another order than the data.

    Returns:
        The notices for the user.
    """
    rows = {name.lower(): row for row, name in enumerate(checkpoint_names)}
    order = [rows.get(name.lower(), -1) for name in label_names]
    if order == list(range(len(checkpoint_names))) or all(map(_GENERIC_NAME.fullmatch, checkpoint_names)):
        return ()
    if sorted(order) != list(range(len(checkpoint_names))):
        before, now = ", ".join(checkpoint_names), ", ".join(label_names)
        return (f"{checkpoint} has a trained head for the classes {before}: it starts as the head of {now}",)
    heads = _heads(model, len(label_names))
    before, now = ", ".join(checkpoint_names), ", ".join(label_names)
    if not heads:
        return (f"{checkpoint} has its classes in the order {before}, but the data in the order {now}",)
    with torch.no_grad():
        for parameter in (parameter for head in heads for parameter in head.parameters()):
            parameter.copy_(parameter[order].clone())
    return (f"{checkpoint} has its classes in the order {before}: its head was reordered to that of the data, {now}",)


def _heads(model: nn.Module, classes: int) -> list[nn.Linear]:
    """The layers that compute the class scores; a few models have several, and return the mean of their scores."""
    heads = [
        child
        for name, child in model.named_children()
        if isinstance(child, nn.Linear) and child.out_features == classes and name not in _NO_HEADS
    ]
    if heads:
        return heads
    # The head is a module of several layers.
    last = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
    return [last] if last.out_features == classes else []


def hub_options(config: TrainConfig) -> dict[str, Any]:
    """What every `from_pretrained` gets: the revision of the checkpoint, and no code of a hub model is run."""
    options: dict[str, Any] = {"trust_remote_code": False}
    if config.checkpoint_revision is not None:
        options["revision"] = config.checkpoint_revision
    return options


def read_config(config_class: Any, checkpoint: str, **options: Any) -> PretrainedConfig:
    """The transformers config of a checkpoint, with the outputs that the training loop reads and no others.

    Raises:
        UserError: The config cannot be loaded.
    """
    try:
        config: PretrainedConfig = config_class.from_pretrained(checkpoint, **options)
    except (OSError, ValueError, KeyError, StrictDataclassError, ImportError) as error:
        raise checkpoint_error(checkpoint, error) from error
    for name, value in _OUTPUTS.items():
        if hasattr(config, name):
            setattr(config, name, value)
    if config.architectures is None:
        config.architectures = []  # transformers iterates over it where a model type has several classes
    return config


def checkpoint_error(
    checkpoint: str,
    error: Exception,
    hint: str | None = None,
) -> UserError:
    reason = first_line(error)
    hint = (
        hint
        or fetch_hint(checkpoint, os.environ)
        or "give a folder or a hub id that this host can reach or has in its cache"
    )
    if isinstance(error, ImportError):  # such as timm
        reason, hint = "its model needs a package that is not installed", reason
    if "trust_remote_code" in str(error):
        reason = "it needs code of its own, which is not run"
        hint = "give a checkpoint of a model that transformers has"
    return UserError(f"checkpoint {checkpoint!r} cannot be loaded: {reason}", hint=hint)


def from_architecture(
    config_class: Any, model_class: Any, architecture: Mapping[str, Any], label_names: Sequence[str], **run_fields: Any
) -> BuiltModel:
    """A classifier with random weights.

    Args:
        config_class: The class of the family's transformers config.
        model_class: The class of the family's transformers model.
        architecture: Fields of the transformers config, as the user wrote them.
        label_names: The names of the classes.
        run_fields: Fields of the transformers config that other fields of the run determine.

    Raises:
        UserError: A field is unknown, or the values do not make a model.
    """
    known = [field.name for field in dataclasses.fields(config_class) if field.name not in _NOT_ARCHITECTURE]
    for name, value in architecture.items():
        where = f"architecture.{name}"
        if name in _NOT_ARCHITECTURE:
            raise UserError(f"{name!r} cannot be set here", where=where, hint=_NOT_ARCHITECTURE[name])
        if name in run_fields and run_fields[name] != value:
            raise UserError(f"{value!r} contradicts the run's {run_fields[name]!r}", where=where, hint="drop it here")
        if name not in known:
            hint = suggest_spelling(name, known, "the documentation of transformers lists the fields")
            raise UserError(f"unknown field {name!r} of {config_class.__name__}", where=where, hint=hint)
    try:
        config = config_class(**{**architecture, **run_fields}, **_classes(label_names))
        # The constructor reads the attention implementation from the config.
        config._attn_implementation = "sdpa"
        return BuiltModel(model_class(config))
    except _INVALID_VALUES as error:
        reason = str(error) or type(error).__name__
        message = f"invalid values for a {config_class.model_type} model: {reason}"
        raise UserError(message, where="architecture") from error


def _classes(label_names: Sequence[str]) -> dict[str, Any]:
    return {
        "id2label": dict(enumerate(label_names)),
        "label2id": {name: index for index, name in enumerate(label_names)},
        "problem_type": "single_label_classification",  # also for a checkpoint of another problem type
    }
