"""Images of every mode become RGB pixels."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from disttrain.data.pixels import decode_image
from disttrain.errors import UserError


def png(pixels: np.ndarray[Any, Any]) -> dict[str, Any]:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return {"bytes": file.getvalue(), "path": None}


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "LA", "1", "CMYK"])
def test_images_of_any_mode_become_rgb(mode: str, tmp_path: Path) -> None:
    path = tmp_path / ("a.tiff" if mode == "CMYK" else "a.png")
    Image.new("RGB", (5, 4), (255, 255, 255)).convert(mode).save(path)
    image = decode_image({"bytes": None, "path": str(path)})
    assert (image.mode, image.size, image.getpixel((2, 2))) == ("RGB", (5, 4), (255, 255, 255))


def test_16_bit_grey_is_not_clipped() -> None:
    image = decode_image(png(np.full((2, 2), 128 << 8, dtype=np.uint16)))
    assert image.getpixel((0, 0)) == (128, 128, 128)


def test_images_are_rotated_by_exif() -> None:
    file = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: rotated by 90 degrees
    Image.new("RGB", (8, 4)).save(file, "JPEG", exif=exif)
    assert decode_image({"bytes": file.getvalue(), "path": None}).size == (4, 8)


def test_a_file_that_is_not_an_image() -> None:
    with pytest.raises(UserError, match="an image cannot be decoded"):
        decode_image({"bytes": b"no image", "path": None})
