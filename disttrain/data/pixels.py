"""Decodes an image file to RGB pixels."""

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

from disttrain.errors import UserError, first_line

# An image of an undecoded column: the `bytes` of its file, or the `path` of the file; None if the row has no image.
Value = Mapping[str, Any] | None


class BrokenImageError(UserError):
    """A file is not an image that can be decoded."""

    def __init__(self, reason: str, where: str | None) -> None:
        super().__init__(f"an image cannot be decoded: {reason}", where=where)
        self.reason = reason


def resize(pixels: Tensor, size: int) -> Tensor:
    """Resizes byte pixels (..., 3, height, width) to (..., 3, size, size); unchanged if they have that size."""
    resized: Tensor = functional.resize(pixels, [size, size], antialias=True)
    return resized


def read_pixels(value: Value) -> Tensor:
    """The pixels of an image file, (3, height, width) as bytes; raises what `decode_image` raises."""
    pixels: Tensor = functional.pil_to_tensor(decode_image(value))
    return pixels


def decode_image(value: Value) -> Image.Image:
    """An image of any mode as RGB, rotated according to its EXIF data.

    Raises:
        BrokenImageError: The image cannot be decoded. This depends on its content only, so that all ranks agree.
        UserError: The file cannot be read now; this may be temporary.
    """
    path = (value or {}).get("path")
    file = io.BytesIO(_file_bytes(value))
    try:
        with Image.open(file) as image:
            upright = ImageOps.exif_transpose(image)
            if upright.mode.startswith("I"):
                # 16-bit grey, which Pillow would clip at 255.
                upright = Image.fromarray((np.asarray(upright) >> 8).astype(np.uint8))
            return upright.convert("RGB")
    except MemoryError:
        raise  # a problem of this host, not of the image: Pillow reports an image that is too large by another error
    except UnidentifiedImageError as error:
        raise BrokenImageError("it is not an image in a known format", path) from error
    except Exception as error:
        # For damaged bytes, Pillow's readers of about forty formats raise many kinds of errors: OSError, SyntaxError,
        # ValueError, struct.error, zlib.error, DecompressionBombError...
        reason = first_line(error)
        raise BrokenImageError(reason, path) from error


def _file_bytes(value: Value) -> bytes:
    """The content of the file, read completely first: later errors are then about the content, not the disk."""
    if value is None or (value["bytes"] is None and value["path"] is None):
        raise BrokenImageError("the row has no image", None)
    data: bytes | None = value["bytes"]
    if data is None:
        data = _read_file(value["path"])
    if not data:
        raise BrokenImageError("the file is empty", value["path"])
    return data


def _read_file(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except FileNotFoundError as error:
        raise BrokenImageError("the file does not exist", path) from error
    except OSError as error:
        raise UserError(f"an image cannot be read: {error.strerror}", where=path) from error


def content(value: Value) -> bytes:
    """Identifies an image: the bytes of its file, or the name, size and time of a file on disk."""
    if value is None:
        return b""
    if value["bytes"] is not None:
        data: bytes = value["bytes"]
        return data
    with suppress(OSError, TypeError):  # for a missing file the name must be enough
        stat = os.stat(value["path"])
        return f"{value['path']} {stat.st_size} {stat.st_mtime_ns}".encode()
    return str(value["path"]).encode()
