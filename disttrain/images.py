"""Images as pixels: decoded once for all processes, or of a very large split each time they are asked for."""

from __future__ import annotations

import functools
import io
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import PIL
import torch
from numpy.typing import NDArray
from PIL import Image as PillowImage
from PIL import ImageOps
from torch import Tensor
from torchvision.transforms.v2 import functional as vision

from disttrain.batches import Batch, Indices
from disttrain.data import Split
from disttrain.dist import Group
from disttrain.errors import UserError
from disttrain.mapped import Append, Arrays, content_key, find_arrays, free_bytes, mapped_arrays

# Pixels of a split that are kept: 110,000 images of 224 x 224. What is larger is decoded each time it is asked for.
KEPT_UP_TO_BYTES = 16 << 30
# Images, and their pixels, that are decoded together: enough for all threads, and no more memory than that.
_CHUNK, _CHUNK_BYTES = 256, 64 << 20


class _AnotherSizeError(Exception):
    """The images of a split are not all of one size."""


@dataclass(frozen=True)
class DecodedImages:
    """Images as the pixels of one size, at most that of the model's input: the model resizes them where it is."""

    pixels: NDArray[np.uint8]  # (images, 3, height, width)
    labels: NDArray[np.int64]
    in_memory = True
    lengths = None

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, indices: Sequence[int] | Indices) -> Batch:
        """The images as bytes: a quarter of what floats would take on the way to a GPU."""
        chosen = np.asarray(indices)
        return {"pixels": torch.from_numpy(self.pixels[chosen]), "labels": torch.from_numpy(self.labels[chosen])}


@dataclass(frozen=True)
class ImageFiles:
    """Images that are decoded each time they are asked for: the pixels of the split would not fit."""

    split: Split
    column: str
    size: int
    in_memory = False
    lengths = None

    def __len__(self) -> int:
        return len(self.split)

    def batch(self, indices: Sequence[int] | Indices) -> Batch:
        """The images as bytes, (images, 3, size, size)."""
        rows = [int(index) for index in indices]
        pixels = [resize(read_pixels(value), self.size) for value in self.split.rows[rows][self.column]]
        return {"pixels": torch.stack(pixels), "labels": torch.from_numpy(self.split.labels[rows])}


def open_images(split: Split, column: str, size: int, name: str, group: Group) -> DecodedImages | ImageFiles:
    """The images of a split, decoded here and now where there is room for their pixels.

    Args:
        split: The same on every rank.
        column: Of the images.
        size: Height and width of the model's input, in pixels.
        name: Of the split, for what is said on the way.
        group: All ranks call this. Rank 0 decodes before the others look for what it has kept.

    Raises:
        UserError: An image cannot be decoded.
    """
    decoder = _Decoder(split, column, size, name, group)
    shapes = decoder.shapes()
    # By the data alone: the ranks must agree on whether they wait for rank 0.
    if decoder.size_bytes(shapes[0]) <= KEPT_UP_TO_BYTES:
        key = decoder.key()
        with group.main_first():
            arrays = decoder.arrays(key, shapes)
        if arrays is not None:
            return DecodedImages(arrays["pixels"], split.labels)
    return ImageFiles(split, column, size)


@dataclass(frozen=True)
class _Decoder:
    """Decodes a whole split; the fields are the arguments of `open_images`."""

    split: Split
    column: str
    size: int
    name: str
    group: Group

    def shapes(self) -> list[tuple[int, int]]:
        """(height, width) of what might be kept: the first image's, should all have it, before the model's input's.

        Small images are kept as they are: CIFAR's take 3 kB, and 150 kB as a model's input.
        """
        height, width = read_pixels(self.split.rows[0][self.column]).shape[1:]
        fits = height <= self.size and width <= self.size and (height, width) != (self.size, self.size)
        return [(height, width)] * fits + [(self.size, self.size)]

    def size_bytes(self, shape: tuple[int, int]) -> int:
        return len(self.split) * 3 * shape[0] * shape[1]

    def key(self) -> str:
        """Of all that the pixels depend on; files on disk by name, size and time, since reading all would take long."""

        def content() -> Iterator[bytes]:
            yield f"images {self.size} Pillow {PIL.__version__} torch {torch.__version__}".encode()
            for start in range(0, len(self.split), _CHUNK):
                yield from map(_content, self.split.rows[start : start + _CHUNK][self.column])

        return content_key(content())

    def arrays(self, key: str, shapes: Sequence[tuple[int, int]]) -> Arrays | None:
        """The pixels, as small as they can be kept; None where there is no room for them."""
        for shape in shapes:
            size_bytes = self.size_bytes(shape)
            if size_bytes > KEPT_UP_TO_BYTES or (find_arrays(key) is None and 2 * size_bytes > free_bytes()):
                return None
            with suppress(_AnotherSizeError):
                return mapped_arrays(key, functools.partial(self._append_pixels, shape))
        return None

    def _append_pixels(self, shape: tuple[int, int], append: Append) -> None:
        rows = max(1, min(_CHUNK, _CHUNK_BYTES * len(self.split) // self.size_bytes(shape)))
        doing = f"decoding {{}} of {{}} images of {self.name}"
        PillowImage.init()  # or threads that load Pillow's plugins at once may miss the one that an image needs
        with _one_torch_thread(), ThreadPoolExecutor(len(os.sched_getaffinity(0))) as threads:
            for part in self.group.parts(len(self.split), rows, doing):
                values = self.split.rows[part][self.column]
                append("pixels", np.stack(list(threads.map(functools.partial(self._pixels, shape), values))))

    def _pixels(self, shape: tuple[int, int], value: Mapping[str, Any]) -> NDArray[np.uint8]:
        pixels = read_pixels(value)
        if shape == (self.size, self.size):
            pixels = resize(pixels, self.size)
        elif pixels.shape[1:] != shape:
            raise _AnotherSizeError
        array: NDArray[np.uint8] = pixels.numpy()
        return array


def _content(value: Mapping[str, Any]) -> bytes:
    if value["bytes"] is not None:
        found: bytes = value["bytes"]
        return found
    with suppress(OSError):  # of a file that is not there the name is all
        stat = os.stat(value["path"])
        return f"{value['path']} {stat.st_size} {stat.st_mtime_ns}".encode()
    return str(value["path"]).encode()


@contextmanager
def _one_torch_thread() -> Iterator[None]:
    """While as many threads as there are cores call torch, each starts no threads of its own."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def resize(pixels: Tensor, size: int) -> Tensor:
    """Pixels (..., 3, height, width) as bytes of (..., 3, size, size); the same ones where that is their size."""
    resized: Tensor = vision.resize(pixels, [size, size], antialias=True)
    return resized


def read_pixels(value: Mapping[str, Any]) -> Tensor:
    """The pixels of an image file, (3, height, width) as bytes; raises what `decode_image` raises."""
    pixels: Tensor = vision.pil_to_tensor(decode_image(value))
    return pixels


def decode_image(value: Mapping[str, Any]) -> PillowImage.Image:
    """An image of any mode as RGB, turned the way its EXIF data say.

    Args:
        value: `bytes` of an image file, or else the `path` of one, as a column of undecoded images gives it.

    Raises:
        UserError: It is not an image.
    """
    file = value["path"] if value["bytes"] is None else io.BytesIO(value["bytes"])
    try:
        with PillowImage.open(file) as image:
            upright = ImageOps.exif_transpose(image)
            if upright.mode.startswith("I"):
                # Grey of 16 bits, which Pillow would cut off at 255.
                upright = PillowImage.fromarray((np.asarray(upright) >> 8).astype(np.uint8))
            return upright.convert("RGB")
    except OSError as error:
        raise UserError(f"an image cannot be decoded: {error}", where=value.get("path")) from error
