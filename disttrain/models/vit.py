"""The ViT family: reads images as pixels of one size, and classifies them with a transformers model."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import ViTConfig
from transformers.image_processing_base import ImageProcessingMixin
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
from disttrain.models.model_change import ModelChange, change_notices, changes_made
from disttrain.models.pretrained import from_architecture, from_checkpoint, read_config, silence_transformers

INPUT: InputKind = "image"
# Scales pixels from [0, 1] to [-1, 1], as in the training of ViT (Dosovitskiy et al. 2021); a checkpoint may differ.
_HALF = (0.5, 0.5, 0.5)


class ImageClassifier(nn.Module):
    """A transformers model whose input is a batch; it resizes and normalises the pixels on its own device."""

    mean: Tensor
    scale: Tensor

    def __init__(self, model: Any, mean: Sequence[float], std: Sequence[float], size: int | None = None) -> None:
        super().__init__()
        self.model = model
        self.size = size  # None: do not resize
        # (pixel / 255 - mean) / std, as one subtraction and one multiplication.
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1) * 255, persistent=False)
        self.register_buffer("scale", 1 / (torch.tensor(std).view(3, 1, 1) * 255), persistent=False)

    def forward(self, batch: Batch) -> Tensor:
        pixels = batch["pixels"]
        if self.size is not None:
            pixels = resize(pixels, self.size)
        pixels = (pixels - self.mean) * self.scale
        logits: Tensor = self.model(pixel_values=pixels).logits
        return logits


class FirstTokenLayer(ViTLayer):  # type: ignore[misc]  # transformers is Any to mypy
    """A ViT layer that returns its first token only."""

    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None = None, **_: Any) -> Tensor:
        attention, tokens = self.attention, self.layernorm_before(hidden_states)
        attended = attend_from_first(
            attention.q_proj(tokens[:, :1]),
            attention.k_proj(tokens),
            attention.v_proj(tokens),
            attention_mask,
            heads=attention.num_attention_heads,
            dropout=attention.attention_dropout if self.training else 0.0,
            scale=attention.scaling,
        )
        first = hidden_states[:, :1] + self.dropout(attention.o_proj(attended))
        output: Tensor = first + self.dropout(self.mlp(self.layernorm_after(first)))
        return output


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
    mean: Sequence[float] = _HALF
    std: Sequence[float] = _HALF
    if config.checkpoint is None:
        built = _from_architecture(config, encoded)
        notices = list(built.notices)
    else:
        built = _from_checkpoint(config, config.checkpoint, encoded)
        notices = list(built.notices)
        try:
            mean, std = _normalisation(ImageProcessingMixin.get_image_processor_dict(config.checkpoint)[0])
        except OSError:
            default = "pixels normalised by mean and deviation 0.5"
            notices.append(f"{config.checkpoint} has no preprocessor_config.json: {default}")
    changes: list[ModelChange] = []
    if config.trim_last_layer:
        changes.append(trim(built.model, FirstTokenLayer))
    notices += change_notices(changes)
    model = ImageClassifier(built.model, mean, std, config.image_size)
    save = _saver(built.model, config.image_size, mean, std)
    return BuiltModel(model, tuple(notices), save, changes_made(changes))


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
    patch = architecture.get("patch_size")
    if isinstance(patch, list):
        raise UserError(f"patch_size is {patch}", where="architecture.patch_size", hint="give an integer")
    _check_patches(config.image_size, built.model.config)
    return built


def _from_checkpoint(config: TrainConfig, checkpoint: str, encoded: EncodedSplits) -> BuiltModel:
    """The checkpoint's model, changed to the run's image size if necessary."""
    hf_config: Any = read_config(ViTConfig, checkpoint)
    model_type = ViTConfig.get_config_dict(checkpoint)[0].get("model_type")
    if model_type != "vit":
        raise UserError(f"checkpoint {checkpoint!r} is a {model_type} model", hint="model vit takes a vit model")
    _check_input(checkpoint, hf_config)
    _check_patches(config.image_size, hf_config)
    built = from_checkpoint(ViTForImageClassification, checkpoint, hf_config, encoded.label_names)
    if config.image_size == hf_config.image_size:
        return built
    sizes = f"{hf_config.image_size} to {config.image_size} pixels"
    _change_size(built.model, config.image_size)
    return BuiltModel(built.model, (*built.notices, f"position embeddings of {checkpoint} interpolated from {sizes}"))


def _change_size(model: Any, size: int) -> None:
    """Changes the image size of a model, including its position embeddings, so that it is saved with this size."""
    embeddings, patch = model.vit.embeddings, model.config.patch_size
    patches = (size // patch) ** 2
    tokens = torch.empty(1, patches + 1, model.config.hidden_size)  # only its shape is read
    with torch.no_grad():
        positions = embeddings.interpolate_pos_encoding(tokens, size, size)
    embeddings.position_embeddings = nn.Parameter(positions.clone())
    embeddings.image_size = embeddings.patch_embeddings.image_size = (size, size)
    embeddings.patch_embeddings.num_patches = patches
    model.config.image_size = size


def _saver(model: Any, size: int, mean: Sequence[float], std: Sequence[float]) -> Callable[[Path], None]:
    def save(folder: Path) -> None:
        model.save_pretrained(folder)
        processor = {
            "image_processor_type": "ViTImageProcessor",
            "size": {"height": size, "width": size},
            "image_mean": list(mean),
            "image_std": list(std),
        }
        (folder / "preprocessor_config.json").write_text(json.dumps(processor, indent=2) + "\n", encoding="utf-8")

    return save


def _normalisation(processor: Mapping[str, Any]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The mean and deviation of each channel, for pixels in [0, 1], from a checkpoint's image processor."""
    factor = processor.get("rescale_factor") or 1 / 255  # for pixels in [0, 255]
    if not processor.get("do_rescale", True):
        factor = 1.0
    mean = _per_channel(processor.get("image_mean") or _HALF)
    std = _per_channel(processor.get("image_std") or _HALF)
    if not processor.get("do_normalize", True):
        mean, std = _per_channel(0.0), _per_channel(1.0)
    # The processor computes (factor * pixel - mean) / std for pixels in [0, 255].
    return tuple(value / (factor * 255) for value in mean), tuple(value / (factor * 255) for value in std)


def _per_channel(value: Any) -> tuple[float, ...]:
    """The values of the three channels; a single number applies to all of them."""
    if isinstance(value, list | tuple):
        return tuple(value)
    return (value,) * 3


def _check_input(checkpoint: str, hf_config: Any) -> None:
    """Checks that a checkpoint takes square colour images; replaces a size of two equal numbers by one number."""
    if hf_config.num_channels != 3:
        channels = f"images of {hf_config.num_channels} channels"
        raise UserError(f"checkpoint {checkpoint!r} takes {channels}", hint="images are read as RGB, 3 channels")
    for name in ("image_size", "patch_size"):
        value = getattr(hf_config, name)
        if isinstance(value, list | tuple):
            if len(set(value)) != 1:
                raise UserError(f"checkpoint {checkpoint!r} has {name} {list(value)}", hint="it must be square")
            setattr(hf_config, name, value[0])
        if type(getattr(hf_config, name)) is not int or getattr(hf_config, name) < 1:
            raise UserError(f"checkpoint {checkpoint!r} has {name} {getattr(hf_config, name)!r}")


def _check_patches(image_size: int, hf_config: Any) -> None:
    patch = hf_config.patch_size
    if image_size % patch:
        raise UserError(f"image_size {image_size} is not a multiple of the patch size {patch}", where="image_size")
