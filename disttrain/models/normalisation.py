"""How a checkpoint's image processor normalises pixels, found by giving it images of one colour."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoImageProcessor

from disttrain.errors import UserError

# The height and width of the images that the processor gets, in pixels; a few processors need more than one patch.
_SIZE = 64


@dataclass(frozen=True)
class Normalisation:
    """(pixel / 255 - mean) / std for each of the three channels, of pixels from 0 to 255.

    The default scales to [-1, 1], as in the training of ViT (Dosovitskiy et al. 2021).
    """

    mean: Sequence[float] = (0.5, 0.5, 0.5)
    std: Sequence[float] = (0.5, 0.5, 0.5)


def checkpoint_normalisation(checkpoint: str) -> Normalisation | None:
    """The normalisation of a checkpoint's image processor; None if the checkpoint has none.

    The processor is asked, because its class adds to what its file says: that of EfficientNet divides by the deviation
    twice, that of MobileViT exchanges red and blue.

    Raises:
        UserError: The processor computes something else than a mean and a deviation of each channel.
    """
    try:
        processor = AutoImageProcessor.from_pretrained(checkpoint, trust_remote_code=False)
    except OSError:
        return None
    except (ValueError, ImportError, TypeError, KeyError) as error:
        raise _not_supported(checkpoint, error) from error
    for name in ("image_mean", "image_std"):
        if getattr(processor, name, None) is None:  # a file may say null for the default of the class
            setattr(processor, name, getattr(type(processor), name, None))
    try:
        black, white, red = (_processed(processor, colour) for colour in ((0, 0, 0), (255, 255, 255), (255, 0, 0)))
    except Exception as error:
        # Processors of other inputs, such as color clusters or patches, fail in their own ways.
        raise _not_supported(checkpoint, error) from error
    if not torch.allclose(red, torch.stack([white[0], black[1], black[2]])):
        reason = "it mixes the channels or exchanges them"
        raise UserError(f"the image processor of checkpoint {checkpoint!r} is not supported: {reason}")
    std = 1 / (white - black)
    if not bool(torch.isfinite(std).all()):
        reason = "white and black images are the same to it"
        raise UserError(f"the image processor of checkpoint {checkpoint!r} is not supported: {reason}")
    return Normalisation((-black * std).tolist(), std.tolist())


def _processed(processor: Any, colour: tuple[int, int, int]) -> torch.Tensor:
    """The three channels of a processed image of one colour, in float64."""
    pixels = torch.tensor(colour, dtype=torch.uint8).view(3, 1, 1).expand(3, _SIZE, _SIZE).contiguous()
    processed = processor(pixels, do_resize=False, do_center_crop=False, return_tensors="pt")["pixel_values"][0]
    channels: torch.Tensor = processed.double().flatten(1)[:, 0]
    if channels.shape != (3,):
        raise ValueError(f"its result has the shape {tuple(processed.shape)}")
    return channels


def _not_supported(checkpoint: str, error: Exception) -> UserError:
    reason = next(iter(str(error).splitlines()), type(error).__name__)
    return UserError(f"the image processor of checkpoint {checkpoint!r} is not supported: {reason}")
