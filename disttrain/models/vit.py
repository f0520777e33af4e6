"""The ViT family: reads images as pixels of one size, and classifies them with a transformers model.

Checkpoints may be of any model that AutoModelForImageClassification opens and whose input is pixels.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForImageClassification, ViTConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES
from transformers.models.deit.modeling_deit import DeiTForImageClassification, DeiTLayer
from transformers.models.vit.modeling_vit import ViTForImageClassification, ViTLayer

from disttrain.config.train_config import TrainConfig
from disttrain.data.batches import Batch
from disttrain.data.images import DecodedSplit, open_images
from disttrain.data.pixels import resize
from disttrain.data.sources import InputKind
from disttrain.data.splits import Split, Splits
from disttrain.distributed.group import Group
from disttrain.errors import UserError
from disttrain.models.family import BuiltModel, EncodedSplits
from disttrain.models.first_token_layer import attend_from_first, trim
from disttrain.models.image_size import fit_image_size
from disttrain.models.model_change import ModelChange, change_notices, changes_made
from disttrain.models.normalisation import Normalisation, checkpoint_normalisation
from disttrain.models.pretrained import (
    from_architecture,
    from_checkpoint,
    hub_options,
    read_config,
    silence_transformers,
)

INPUT: InputKind = "image"


class ImageClassifier(nn.Module):
    """A transformers model whose input is a batch; it resizes and normalises the pixels on its own device."""

    mean: Tensor
    scale: Tensor

    def __init__(self, model: Any, normalisation: Normalisation, size: int | None = None) -> None:
        super().__init__()
        self.model = model
        self.size = size  # None: do not resize
        # (pixel / 255 - mean) / std, as one subtraction and one multiplication.
        self.register_buffer("mean", torch.tensor(normalisation.mean).view(3, 1, 1) * 255, persistent=False)
        self.register_buffer("scale", 1 / (torch.tensor(normalisation.std).view(3, 1, 1) * 255), persistent=False)

    def forward(self, batch: Batch) -> Tensor:
        pixels = batch["pixels"]
        if self.size is not None:
            pixels = resize(pixels, self.size)
        pixels = (pixels - self.mean) * self.scale
        logits: Tensor = self.model(pixel_values=pixels).logits
        return logits


def _first_token(layer: Any, hidden_states: Tensor, attention_mask: Tensor | None = None, **_: Any) -> Tensor:
    """The first token only of a layer of ViT or DeiT."""
    attention, tokens = layer.attention, layer.layernorm_before(hidden_states)
    attended = attend_from_first(
        attention.q_proj(tokens[:, :1]),
        attention.k_proj(tokens),
        attention.v_proj(tokens),
        attention_mask,
        heads=attention.num_attention_heads,
        dropout=attention.attention_dropout if layer.training else 0.0,
        scale=attention.scaling,
    )
    first = hidden_states[:, :1] + layer.dropout(attention.o_proj(attended))
    output: Tensor = first + layer.dropout(layer.mlp(layer.layernorm_after(first)))
    return output


class FirstTokenLayer(ViTLayer):  # type: ignore[misc]  # transformers is Any to mypy
    """A ViT layer that returns its first token only."""

    forward = _first_token


class DeiTFirstTokenLayer(DeiTLayer):  # type: ignore[misc]  # transformers is Any to mypy
    """A DeiT layer that returns its first token only."""

    forward = _first_token


# The classifiers whose head reads the first token only, each with its layer that computes no other.
_FIRST_TOKEN_LAYERS = {ViTForImageClassification: FirstTokenLayer, DeiTForImageClassification: DeiTFirstTokenLayer}


def encode(config: TrainConfig, splits: Splits, group: Group, work_dir: Path) -> EncodedSplits:  # noqa: ARG001 - part of Family
    """Both splits as pixels, each of one size; a split that is too large stays in its image files."""

    def opened(split: Split) -> DecodedSplit:
        return open_images(split, splits.input_column, config.image_size, config.broken_images, group)

    train = opened(splits.train)
    if splits.eval is None:
        return EncodedSplits(train.examples, None, splits.label_names, train.notices)
    held_out = opened(splits.eval)
    notices = (*train.notices, *held_out.notices)
    return EncodedSplits(train.examples, held_out.examples, splits.label_names, notices)


def build(config: TrainConfig, encoded: EncodedSplits) -> BuiltModel:
    """The classifier, from the checkpoint or from the architecture."""
    silence_transformers()
    normalisation: Normalisation | None = Normalisation()
    if config.checkpoint is None:
        built = _from_architecture(config, encoded)
    else:
        built = _from_checkpoint(config, config.checkpoint, encoded)
        normalisation = checkpoint_normalisation(config.checkpoint, config.checkpoint_revision)
    notices = list(built.notices)
    if normalisation is None:
        default = "pixels normalised by mean and deviation 0.5"
        notices.append(f"{config.checkpoint} has no preprocessor_config.json: {default}")
        normalisation = Normalisation()
    model: Any = built.model
    changes: list[ModelChange] = []
    if config.trim_last_layer and type(model) in _FIRST_TOKEN_LAYERS:
        changes.append(trim(model, _FIRST_TOKEN_LAYERS[type(model)]))
    notices += change_notices(changes)
    classifier = ImageClassifier(model, normalisation, config.image_size)
    # The first pass shows whether parameters of other models get no gradient, such as a mask token.
    skips_parameters = False if type(model) is ViTForImageClassification else None
    save = _saver(model, config.image_size, normalisation)
    return BuiltModel(classifier, tuple(notices), save, changes_made(changes), skips_parameters)


def _from_architecture(config: TrainConfig, encoded: EncodedSplits) -> BuiltModel:
    architecture = config.architecture or {}
    built = from_architecture(
        ViTConfig,
        ViTForImageClassification,
        architecture,
        encoded.label_names,
        image_size=config.image_size,
        num_channels=3,
    )
    hf_config: Any = built.model.config
    patch = hf_config.patch_size
    if isinstance(patch, list):
        raise UserError(f"patch_size is {patch}", where="architecture.patch_size", hint="give an integer")
    if config.image_size % patch:
        message = f"image_size {config.image_size} is not a multiple of the patch size {patch}"
        raise UserError(message, where="image_size")
    return built


def _from_checkpoint(config: TrainConfig, checkpoint: str, encoded: EncodedSplits) -> BuiltModel:
    """The checkpoint's model, changed to the run's image size if necessary."""
    hf_config: Any = read_config(AutoConfig, checkpoint, **hub_options(config))
    if hf_config.model_type not in MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES:
        raise UserError(
            f"checkpoint {checkpoint!r} is a {hf_config.model_type} model, which does not classify images",
            hint="model vit takes what AutoModelForImageClassification opens",
        )
    _check_input(checkpoint, hf_config)
    built = from_checkpoint(
        AutoModelForImageClassification, checkpoint, hf_config, encoded.label_names, **hub_options(config)
    )
    notices = fit_image_size(built.model, checkpoint, config.image_size)
    return BuiltModel(built.model, (*built.notices, *notices))


def _saver(model: Any, size: int, normalisation: Normalisation) -> Callable[[Path], None]:
    def save(folder: Path) -> None:
        model.save_pretrained(folder)
        processor = {
            "image_processor_type": "ViTImageProcessor",
            "size": {"height": size, "width": size},
            "image_mean": list(normalisation.mean),
            "image_std": list(normalisation.std),
        }
        (folder / "preprocessor_config.json").write_text(json.dumps(processor, indent=2) + "\n", encoding="utf-8")

    return save


def _check_input(checkpoint: str, hf_config: Any) -> None:
    """Checks that a checkpoint takes square colour images."""
    channels = getattr(hf_config, "num_channels", 3)
    if channels != 3:
        message = f"checkpoint {checkpoint!r} takes images of {channels} channels"
        raise UserError(message, hint="images are read as RGB, 3 channels")
    value = getattr(hf_config, "image_size", None)
    if value is None:
        return
    if isinstance(value, list | tuple):
        if len(set(value)) != 1:
            raise UserError(f"checkpoint {checkpoint!r} has image_size {list(value)}", hint="it must be square")
        value = value[0]
    if type(value) is not int or value < 1:
        raise UserError(f"checkpoint {checkpoint!r} has image_size {value!r}")
