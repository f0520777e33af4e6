"""Images as pixels: decoded once for all processes, or of a very large split each time they are asked for."""

from __future__ import annotations

import functools
import os
import socket
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Literal, TypeVar

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
from disttrain.data.batches import Batch, Indices
from disttrain.data.pixels import BrokenImageError, Value, content, read_pixels, resize
from disttrain.data.splits import Split
from disttrain.distributed.group import Group
from disttrain.errors import UserError

T = TypeVar("T")

# Of what this module and `pixels` make of an image: to be raised with every change of it, so that what was kept before
# is not found.
VERSION = 1

# Pixels of a split that are kept: 1.4 million images of 32 x 32, or 28,000 of 224 x 224, which two cores decode in some
# two minutes, and which fit the memory of any host that trains on them. What is larger is decoded each time it is asked
# for, by the loader's processes.
KEPT_UP_TO_BYTES = 4 << 30
# Images, and their pixels, that are decoded together: enough for all threads, and no more memory than that.
_CHUNK, _CHUNK_BYTES = 256, 64 << 20
# Images that are named where some are left out.
_NAMED = 3
_SKIP = "broken_images: skip leaves out what cannot be decoded"


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
        """The images as bytes, (images, 3, size, size).

        Raises:
            UserError: One of them cannot be decoded.
        """
        rows = [int(index) for index in indices]
        pixels = []
        for row, value in zip(rows, self.split.rows[rows][self.column], strict=True):
            try:
                pixels.append(resize(read_pixels(value), self.size))
            except BrokenImageError as error:
                place = f"{_place(self.split, row, value)} of {self.split.name}"
                message = f"the image in {place} cannot be decoded: {error.reason}"
                raise UserError(message, hint=_SKIP) from error
        return {"pixels": torch.stack(pixels), "labels": torch.from_numpy(self.split.labels[rows])}


@dataclass(frozen=True)
class DecodedSplit:
    """The images of a split that can be decoded."""

    examples: DecodedImages | ImageFiles
    notices: tuple[str, ...]


def open_images(
    split: Split, column: str, size: int, on_broken: Literal["refuse", "skip"], group: Group
) -> DecodedSplit:
    """The images of a split, decoded here and now where there is room for their pixels.

    Args:
        split: The same on every rank.
        column: Of the images.
        size: Height and width of the model's input, in pixels.
        on_broken: What to do about images that cannot be decoded. Where there is no room, refusing waits until one is
            met, and skipping costs a pass over all images, whose result is kept.
        group: All ranks call this. Rank 0 decodes before the others look for what it has kept.

    Raises:
        UserError: Images cannot be decoded, and are not to be left out, or are all that there are.
    """
    warnings.filterwarnings("ignore", module="PIL")  # of what matters an error or a notice is made
    decoder = _Decoder(split, column, size, group)
    shapes = decoder.shapes()
    arrays: Arrays | None = None
    # By the data alone: the ranks must agree on whether they wait for rank 0.
    if decoder.size_bytes(shapes[0]) <= KEPT_UP_TO_BYTES:
        key = decoder.key()
        with group.main_first():
            arrays = decoder.arrays(key, shapes)
    # None: no room here, and nobody has looked at all images.
    found = arrays["broken"] if arrays is not None else None
    if group.broadcast_from_main(found is None) and on_broken == "skip":
        with group.main_first():  # it may look for an hour
            if group.is_main:
                found = decoder.find_broken()
    # A host without room leaves out what rank 0 does.
    broken = group.broadcast_from_main(found)
    if broken is None:
        broken = found
    elif found is not None and not np.array_equal(broken, found):
        message = f"of the images of {split.name}, {group.hosts[0]} can decode others than {socket.gethostname()}"
        raise UserError(message, hint="are the files the same?")
    notices: tuple[str, ...] = ()
    if broken is not None and len(broken):
        notices = (_left_out(split, column, broken, on_broken),)
        split = split.select(np.delete(np.arange(len(split)), broken))
    examples = ImageFiles(split, column, size) if arrays is None else DecodedImages(arrays["pixels"], split.labels)
    return DecodedSplit(examples, notices)


def _left_out(split: Split, column: str, broken: Indices, on_broken: str) -> str:
    """The notice on images that are left out.

    Raises:
        UserError: They are not to be left out, or nothing would be left.
    """
    first = broken[:_NAMED].tolist()
    values = split.rows[first][column]
    named = [_place(split, row, value) for row, value in zip(first, values, strict=True)]
    if on_broken == "skip" and len(broken) < len(split):
        names = ", ".join([*named, *["..."] * (len(broken) > _NAMED)])
        return f"left out {len(broken)} of {len(split)} images of {split.name} that cannot be decoded: {names}"
    try:
        read_pixels(values[0])
        reason = "now it can, so it was written meanwhile"
    except BrokenImageError as error:
        reason = error.reason
    message = (
        f"{len(broken)} of {len(split)} images of {split.name} cannot be decoded, the first in {named[0]}: {reason}"
    )
    raise UserError(message, hint=_SKIP if len(broken) < len(split) else None)


def _place(split: Split, row: int, value: Value) -> str:
    path = value["path"] if value is not None else None
    return f"row {split.numbers[row]}" + (f" ({path})" if path else "")


@dataclass(frozen=True)
class _Decoder:
    """Decodes a whole split; the fields are the arguments of `open_images`."""

    split: Split
    column: str
    size: int
    group: Group

    def shapes(self) -> list[tuple[int, int]]:
        """(height, width) of what might be kept: the first image's, should all have it, before the model's input's.

        Small images are kept as they are: CIFAR's take 3 kB, and 150 kB as a model's input.
        """
        for row in range(min(_CHUNK, len(self.split))):
            with suppress(BrokenImageError):
                height, width = read_pixels(self.split.rows[row][self.column]).shape[1:]
                fits = height <= self.size and width <= self.size and (height, width) != (self.size, self.size)
                return [(height, width)] * fits + [(self.size, self.size)]
        return [(self.size, self.size)]

    def size_bytes(self, shape: tuple[int, int]) -> int:
        return len(self.split) * 3 * shape[0] * shape[1]

    def key(self) -> str:
        """Of all that the pixels depend on; files on disk by name, size and time, since reading all would take long."""

        def parts() -> Iterator[bytes]:
            made_by = f"Pillow {PIL.__version__} torch {torch.__version__} torchvision {torchvision.__version__}"
            yield f"images {VERSION} {self.size} {made_by}".encode()
            for start in range(0, len(self.split), _CHUNK):
                yield from map(content, self.split.rows[start : start + _CHUNK][self.column])

        return content_key(parts())

    def arrays(self, key: str, shapes: Sequence[tuple[int, int]]) -> Arrays | None:
        """`pixels` of the images that can be decoded, as small as they can be kept, and the rows that are `broken`.

        None where there is no room for them.
        """
        for shape in shapes:
            size_bytes = self.size_bytes(shape)
            if size_bytes > KEPT_UP_TO_BYTES or (find_arrays(key) is None and 2 * size_bytes > free_bytes()):
                return None
            with suppress(_AnotherSizeError):
                # Never in memory: a disk that fills up, or a quota that nobody told of, would cost each rank 4 GB.
                return cached_arrays(key, functools.partial(self._append_pixels, shape))
        return None

    def find_broken(self) -> Indices:
        """The rows of images that cannot be decoded, without keeping any pixels."""

        def make(append: Append) -> None:
            found = [start + row for start, values in self._read(lambda _: True, 1) for row in _absent(values)]
            append("broken", np.array(found, dtype=np.int64))

        return mapped_arrays(content_key([self.key().encode(), b"broken alone"]), make)["broken"]

    def _append_pixels(self, shape: tuple[int, int], append: Append) -> None:
        broken = []
        for start, values in self._read(functools.partial(self._fitted, shape), self.size_bytes(shape)):
            whole = [value for value in values if value is not None]
            append("pixels", np.array(whole, dtype=np.uint8).reshape(-1, 3, *shape))
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
        """(first row, what is made of the pixels of each image from there on); None of what cannot be decoded."""

        def read(value: Value) -> T | None:
            with suppress(BrokenImageError):
                return use(read_pixels(value))
            return None

        rows = max(1, min(_CHUNK, _CHUNK_BYTES * len(self.split) // size_bytes))
        doing = f"decoding {{}} of {{}} images of {self.split.name}"
        Image.init()  # or threads that load Pillow's plugins at once may miss the one that an image needs
        with _one_torch_thread(), ThreadPoolExecutor(len(os.sched_getaffinity(0))) as threads:
            for part in self.group.parts(len(self.split), rows, doing):
                yield part.start, list(threads.map(read, self.split.rows[part][self.column]))


def _absent(values: Sequence[object]) -> list[int]:
    return [row for row, value in enumerate(values) if value is None]


@contextmanager
def _one_torch_thread() -> Iterator[None]:
    """While as many threads as there are cores call torch, each starts no threads of its own."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
