"""Decodes all images of a split once, in parallel, and caches their pixels."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import PIL
import torch
import torchvision
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from disttrain.data.array_cache import (
    Append,
    Arrays,
    cached_arrays,
    content_key,
    find_arrays,
    free_bytes,
    mapped_arrays,
)
from disttrain.data.batches import Indices
from disttrain.data.pixels import BrokenImageError, Value, content, read_pixels, resize
from disttrain.data.splits import Split
from disttrain.distributed.group import Group

T = TypeVar("T")

# The version of the pixels that this module and `pixels` compute from an image. Increase it with every change of them,
# so that pixels cached before are not found.
VERSION = 1

# The maximum size of a split's pixels in the cache: 1.4 million images of 32 x 32, or 28,000 of 224 x 224. Two cores
# decode them in about two minutes, and they fit into the memory of any host that trains on them. The loader's processes
# decode the images of a larger split each time they are used.
CACHE_LIMIT_BYTES = 4 << 30
# The images, and the size of their pixels, that are decoded together: enough for all threads, and little memory.
_CHUNK, _CHUNK_BYTES = 256, 64 << 20


class _AnotherSizeError(Exception):
    """The images of a split differ in size."""


@dataclass(frozen=True)
class ImageDecoder:
    """Decodes all images of a split; the fields are the arguments of `images.open_images`."""

    split: Split
    column: str
    size: int
    group: Group

    def shapes(self) -> list[tuple[int, int]]:
        """The (height, width) at which the pixels may be cached, in the order to try.

        First the size of the first image, in case all images have it, then the size of the model's input. A small image
        is cached at its own size: one of CIFAR takes 3 kB, and 150 kB as a model's input.
        """
        for row in range(min(_CHUNK, len(self.split))):
            with suppress(BrokenImageError):
                height, width = read_pixels(self.split.rows[self.column][[row]][0]).shape[1:]
                fits = height <= self.size and width <= self.size and (height, width) != (self.size, self.size)
                return [(height, width)] * fits + [(self.size, self.size)]
        return [(self.size, self.size)]

    def size_bytes(self, shape: tuple[int, int]) -> int:
        """The size of the pixels of all images at this (height, width)."""
        return len(self.split) * 3 * shape[0] * shape[1]

    def may_cache(self, shape: tuple[int, int]) -> bool:
        """Whether the pixels are small enough for the cache; the same on every rank."""
        return self.size_bytes(shape) <= CACHE_LIMIT_BYTES

    def key(self) -> str:
        """The key of everything that the pixels depend on; for files their name, size and time, which is faster."""

        def parts() -> Iterator[bytes]:
            made_by = f"Pillow {PIL.__version__} torch {torch.__version__} torchvision {torchvision.__version__}"
            yield f"images {VERSION} {self.size} {made_by}".encode()
            for start in range(0, len(self.split), _CHUNK):
                yield from map(content, self.split.rows[self.column][start : start + _CHUNK])

        return content_key(parts())

    def arrays(self, key: str, shapes: Sequence[tuple[int, int]]) -> Arrays | None:
        """`pixels` of the images that can be decoded, at the smallest size possible, and the `broken` rows.

        Returns:
            The arrays; None if there is no room for them.
        """
        for shape in shapes:
            if not self.may_cache(shape):
                return None
            if find_arrays(key) is None and 2 * self.size_bytes(shape) > free_bytes():
                return None
            with suppress(_AnotherSizeError):
                # Not in memory: if the disk fills up, or a quota is reached, that would cost each rank 4 GB.
                return cached_arrays(key, functools.partial(self._append_pixels, shape))
        return None

    def find_broken(self) -> Indices:
        """The rows of images that cannot be decoded; caches these rows and no pixels."""

        def make(append: Append) -> None:
            broken = [start + row for start, values in self._read(lambda _: True, 1) for row in _absent(values)]
            append("broken", np.array(broken, dtype=np.int64))

        return mapped_arrays(content_key([self.key().encode(), b"broken alone"]), make)["broken"]

    def _append_pixels(self, shape: tuple[int, int], append: Append) -> None:
        broken = []
        for start, values in self._read(functools.partial(self._fitted, shape), self.size_bytes(shape)):
            decoded = [value for value in values if value is not None]
            append("pixels", np.array(decoded, dtype=np.uint8).reshape(-1, 3, *shape))
            broken += [start + row for row in _absent(values)]
        append("broken", np.array(broken, dtype=np.int64))

    def _fitted(self, shape: tuple[int, int], pixels: Tensor) -> NDArray[np.uint8]:
        if shape == (self.size, self.size):
            pixels = resize(pixels, self.size)
        elif pixels.shape[1:] != shape:
            raise _AnotherSizeError
        array: NDArray[np.uint8] = pixels.numpy()
        return array

    def _read(self, use: Callable[[Tensor], T], size_bytes: int) -> Iterator[tuple[int, list[T | None]]]:
        """Yields (first row, the result of `use` for the pixels of each image); None for an image that is broken."""

        def read(value: Value) -> T | None:
            with suppress(BrokenImageError):
                return use(read_pixels(value))
            return None

        rows = max(1, min(_CHUNK, _CHUNK_BYTES * len(self.split) // size_bytes))
        doing = f"decoding {{}} of {{}} images of {self.split.name}"
        Image.init()  # otherwise threads load Pillow's plugins concurrently, and one may miss the plugin it needs
        with _one_torch_thread(), ThreadPoolExecutor(len(os.sched_getaffinity(0))) as threads:
            for part in self.group.parts(len(self.split), rows, doing):
                yield part.start, list(threads.map(read, self.split.rows[self.column][part]))


def _absent(values: Sequence[object]) -> list[int]:
    return [row for row, value in enumerate(values) if value is None]


@contextmanager
def _one_torch_thread() -> Iterator[None]:
    """Limits torch to one thread per call, because one thread for each core calls it."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
