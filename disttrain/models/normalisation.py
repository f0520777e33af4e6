"""How a checkpoint's image processor normalises pixels, found by giving it images of one colour."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from huggingface_hub import _CACHED_NO_EXIST, hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from transformers import AutoImageProcessor

from disttrain.errors import UserError, first_line

# The height and width of the images that the processor gets, in pixels; a few processors need more than one patch.
_SIZE = 64
_MAIN = "main"  # the revision that the hub's libraries read by default
_PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")


@dataclass(frozen=True)
class Normalisation:
    """(pixel / 255 - mean) / std for each of the three channels, of pixels from 0 to 255.

    The default scales to [-1, 1], as in the training of ViT (Dosovitskiy et al. 2021).
    """

    mean: Sequence[float] = (0.5, 0.5, 0.5)
    std: Sequence[float] = (0.5, 0.5, 0.5)


def checkpoint_normalisation(checkpoint: str, revision: str | None = None) -> Normalisation | None:
    """The normalisation of a checkpoint's image processor; None if the checkpoint has none.

    The processor is asked, because its class adds to what its file says: that of EfficientNet divides by the deviation
    twice, that of MobileViT exchanges red and blue.

    Args:
        checkpoint: The folder or hub id.
        revision: The revision on the hub; None for main.

    Raises:
        UserError: The processor computes something else than a mean and a deviation of each channel.
    """
    try:
        processor = AutoImageProcessor.from_pretrained(checkpoint, trust_remote_code=False, revision=revision or _MAIN)
    except (OSError, ValueError, ImportError, TypeError, KeyError) as error:
        if isinstance(error, OSError) and _has_no_processor(checkpoint, revision):
            return None
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
        raise UserError(f"the image processor of checkpoint {checkpoint!r} cannot be used: {reason}")
    std = 1 / (white - black)
    if not bool(torch.isfinite(std).all()):
        reason = "white and black images are the same to it"
        raise UserError(f"the image processor of checkpoint {checkpoint!r} cannot be used: {reason}")
    return Normalisation((-black * std).tolist(), std.tolist())


def _has_no_processor(checkpoint: str, revision: str | None) -> bool:
    """Whether a checkpoint is known to have no image processor: a hub that does not answer may have one."""
    if os.path.isdir(checkpoint):
        return not any(os.path.exists(os.path.join(checkpoint, name)) for name in _PROCESSOR_FILES)
    for name in _PROCESSOR_FILES:
        try:
            hf_hub_download(checkpoint, name, revision=revision)
        except LocalEntryNotFoundError:
            if try_to_load_from_cache(checkpoint, name, revision=revision) is _CACHED_NO_EXIST:
                continue  # an earlier answer of the hub
            return False
        except EntryNotFoundError:
            continue
        except (OSError, ValueError):
            return False
        return False
    return True


def _processed(processor: Any, colour: tuple[int, int, int]) -> torch.Tensor:
    """The three channels of a processed image of one colour, in float64."""
    pixels = torch.tensor(colour, dtype=torch.uint8).view(3, 1, 1).expand(3, _SIZE, _SIZE).contiguous()
    processed = processor(pixels, do_resize=False, do_center_crop=False, return_tensors="pt")["pixel_values"][0]
    if processed.dim() != 3 or len(processed) != 3:
        raise ValueError(f"its result has the shape {tuple(processed.shape)}")
    height, width = processed.shape[1:]
    channels: torch.Tensor = processed[:, height // 2, width // 2].double()  # some processors add a border
    return channels


def _not_supported(checkpoint: str, error: Exception) -> UserError:
    reason = first_line(error)
    return UserError(f"the image processor of checkpoint {checkpoint!r} cannot be used: {reason}")
