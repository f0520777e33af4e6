"""An image file as RGB pixels, and what of it cannot be decoded."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torchvision.transforms.v2 import functional

from disttrain.errors import UserError

# An image of an undecoded column: `bytes` of its file, or else the `path` of one; None where the data set has none.
Value = Mapping[str, Any] | None


class BrokenImageError(UserError):
    """What should be an image file is not one that can be decoded."""

    def __init__(self, reason: str, where: str | None) -> None:
        super().__init__(f"an image cannot be decoded: {reason}", where=where)
        self.reason = reason


def resize(pixels: Tensor, size: int) -> Tensor:
    """Pixels (..., 3, height, width) as bytes of (..., 3, size, size); the same ones where that is their size."""
    resized: Tensor = functional.resize(pixels, [size, size], antialias=True)
    return resized


def read_pixels(value: Value) -> Tensor:
    """The pixels of an image file, (3, height, width) as bytes; raises what `decode_image` raises."""
    pixels: Tensor = functional.pil_to_tensor(decode_image(value))
    return pixels


def decode_image(value: Value) -> Image.Image:
    """An image of any mode as RGB, turned the way its EXIF data say.

    Raises:
        BrokenImageError: It is not an image that can be decoded; by its content alone, so that all ranks agree.
        UserError: The file cannot be read, which another time it might be.
    """
    path = value["path"] if value is not None else None
    file = io.BytesIO(_file_bytes(value))
    try:
        with Image.open(file) as image:
            upright = ImageOps.exif_transpose(image)
            if upright.mode.startswith("I"):
                # Grey of 16 bits, which Pillow would cut off at 255.
                upright = Image.fromarray((np.asarray(upright) >> 8).astype(np.uint8))
            return upright.convert("RGB")
    except MemoryError:
        raise  # of this host, not of the image: what is too large for any has an error of its own
    except UnidentifiedImageError as error:
        raise BrokenImageError("it is no image of a known kind", path) from error
    except Exception as error:
        # Pillow's readers of some forty formats raise whatever damaged bytes lead them to: OSError, SyntaxError,
        # ValueError, struct.error, zlib.error, DecompressionBombError...
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise BrokenImageError(reason, path) from error


def _file_bytes(value: Value) -> bytes:
    """The file as a whole: what goes wrong from here on is of its content, and not of the disk it comes from."""
    if value is None or (value["bytes"] is None and value["path"] is None):
        raise BrokenImageError("there is none", None)
    try:
        found: bytes = Path(value["path"]).read_bytes() if value["bytes"] is None else value["bytes"]
    except FileNotFoundError as error:
        raise BrokenImageError("the file is not there", value["path"]) from error
    except OSError as error:
        raise UserError(f"an image cannot be read: {error.strerror}", where=value["path"]) from error
    if not found:
        raise BrokenImageError("the file is empty", value["path"])
    return found


def content(value: Value) -> bytes:
    """What tells an image from others: the bytes of its file, or the name, size and time of one that lies on disk."""
    if value is None:
        return b""
    if value["bytes"] is not None:
        found: bytes = value["bytes"]
        return found
    with suppress(OSError, TypeError):  # of a file that is not there the name is all
        stat = os.stat(value["path"])
        return f"{value['path']} {stat.st_size} {stat.st_mtime_ns}".encode()
    return str(value["path"]).encode()
