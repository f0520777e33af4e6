"""Makes a pretrained model take images of the run's size, or refuses it; tried by a pass of the model."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from disttrain.errors import UserError, first_line


def fit_image_size(model: Any, checkpoint: str, size: int) -> tuple[str, ...]:
    """Makes a model take square images of this size, also as the only image of a batch.

    A model that has no positions, or interpolates them in each pass, stays as it is. The position embeddings of others
    are interpolated once, as the model itself does it, so that it trains and is saved with embeddings of its own size.

    Args:
        model: A transformers image classifier with pretrained weights.
        checkpoint: Its checkpoint, for messages.
        size: The height and width of the images, in pixels.

    Returns:
        The notices for the user.

    Raises:
        UserError: The model does not take images of this size.
    """
    notices = _fit_positions(model, checkpoint, size)
    _check_batch_norm(model, checkpoint, size)
    return notices


def _fit_positions(model: Any, checkpoint: str, size: int) -> tuple[str, ...]:
    own_size = _own_size(model.config)
    images = _test_image(size)
    patch = _patch_size(model)
    if patch is not None and size % patch:
        # Some models would not see the right and the bottom edge.
        raise UserError(f"image_size {size} is not a multiple of the patch size {patch}", where="image_size")
    try:
        _scores(model, images)
    except Exception as error:
        # Each model has its own check of the size, and its own error.
        embeddings = _embeddings_with_positions(model)
        if own_size in (None, size) or embeddings is None:
            raise _refused(checkpoint, size, own_size, error) from error
    else:
        if own_size in (None, size):
            return ()
        return (f"{checkpoint} was trained on images of {own_size} pixels, this run has {size}",)
    try:
        expected = _scores(model, images, interpolate_pos_encoding=True)
        _interpolate_positions(model, embeddings, size // (patch or 1), size)
        actual = _scores(model, images)
    except Exception as error:
        raise _refused(checkpoint, size, own_size, error) from error
    if not torch.allclose(actual, expected, rtol=1e-3, atol=1e-5):
        other = ValueError("with interpolated position embeddings it gives other scores")
        raise _refused(checkpoint, size, own_size, other)
    return (f"position embeddings of {checkpoint} interpolated from {own_size} to {size} pixels",)


def _interpolate_positions(model: Any, embeddings: Any, per_side: int, size: int) -> None:
    """Gives the embeddings positions for `per_side` x `per_side` patches."""
    patches = embeddings.patch_embeddings
    special = embeddings.position_embeddings.shape[1] - patches.num_patches  # such as the class token
    tokens = torch.empty(1, per_side**2 + special, embeddings.position_embeddings.shape[2])  # only its shape is read
    with torch.no_grad():
        positions = embeddings.interpolate_pos_encoding(tokens, size, size)
    embeddings.position_embeddings = nn.Parameter(positions.clone())
    patches.num_patches = per_side**2
    for module in (embeddings, patches):
        if hasattr(module, "image_size"):
            module.image_size = (size, size)
    model.config.image_size = size


def _check_batch_norm(model: nn.Module, checkpoint: str, size: int) -> None:
    """Checks that batch normalisation has more than one value per channel in a batch of one image.

    The last batch of an epoch may have one image. The layers would fail there, in the middle of the run.
    """
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    if not norms:
        return
    before = [{name: buffer.clone() for name, buffer in norm.named_buffers()} for norm in norms]
    try:
        for norm in norms:
            norm.train()
        with torch.no_grad():
            model(pixel_values=_test_image(size))
    except ValueError as error:
        message = f"checkpoint {checkpoint!r} cannot train on one image of {size} x {size} pixels: {first_line(error)}"
        hint = "choose a larger image_size, or a model without batch normalisation"
        raise UserError(message, where="image_size", hint=hint) from error
    finally:
        for norm, buffers in zip(norms, before, strict=True):
            norm.eval()
            norm.load_state_dict(buffers, strict=False)


def _embeddings_with_positions(model: nn.Module) -> Any:
    """The module that adds learned positions to patches and can interpolate them; None if the model has none."""
    for module in model.modules():
        has_positions = isinstance(getattr(module, "position_embeddings", None), nn.Parameter)
        if has_positions and hasattr(module, "interpolate_pos_encoding") and hasattr(module, "patch_embeddings"):
            return module
    return None


def _patch_size(model: nn.Module) -> int | None:
    """The size of the patches into which a model cuts images; None if it pads them, or has patches that overlap."""
    for name, module in model.named_modules():
        projection = getattr(module, "projection", None)
        if name.endswith("patch_embeddings") and isinstance(projection, nn.Conv2d) and not hasattr(module, "maybe_pad"):
            return projection.stride[0] if projection.stride == projection.kernel_size else None
    return None


def _own_size(config: Any) -> int | None:
    """The image size for which a checkpoint was made; None if its config has none."""
    size = getattr(getattr(config, "vision_config", config), "image_size", None)
    if isinstance(size, list | tuple):
        size = size[0]
    return size if isinstance(size, int) else None


def _test_image(size: int) -> Tensor:
    """One image, without drawing random numbers."""
    return torch.arange(3 * size * size, dtype=torch.float32).sin().view(1, 3, size, size)


def _scores(model: Any, images: Tensor, **options: bool) -> Tensor:
    """The class scores of the images, without dropout.

    Raises:
        ValueError: The model gives something else.
    """
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            scores: Tensor = model(pixel_values=images, **options).logits
    finally:
        model.train(was_training)
    expected = (len(images), model.config.num_labels)
    if tuple(scores.shape) != expected:
        raise ValueError(f"its scores have the shape {tuple(scores.shape)}, not {expected}")
    if not math.isfinite(float(scores.sum())):
        raise ValueError("its scores are not finite numbers")
    return scores


def _refused(checkpoint: str, size: int, own_size: int | None, error: Exception) -> UserError:
    message = f"checkpoint {checkpoint!r} cannot classify images of {size} x {size} pixels: {first_line(error)}"
    if own_size in (None, size):
        return UserError(message, hint="choose another image_size or another model")
    return UserError(message, hint=f"it was trained with image_size: {own_size}")
