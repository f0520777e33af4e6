"""Images as pixels: decoded once for all processes, or each time they are used if the split is very large."""

from __future__ import annotations

import socket
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from disttrain.data.array_cache import Arrays
from disttrain.data.batches import Batch, Indices
from disttrain.data.image_decoder import ImageDecoder
from disttrain.data.pixels import BrokenImageError, Value, read_pixels, resize
from disttrain.data.splits import Split
from disttrain.distributed.group import Group
from disttrain.errors import UserError

# The number of images that a message names.
_NAMED = 3
_SKIP = "broken_images: skip leaves out images that cannot be decoded"


@dataclass(frozen=True)
class DecodedImages:
    """Images as pixels of one size, at most the size of the model's input; the model resizes them on its device."""

    pixels: NDArray[np.uint8]  # (images, 3, height, width)
    labels: NDArray[np.int64]
    in_memory = True
    lengths = None

    @property
    def arrays(self) -> tuple[NDArray[Any], ...]:
        """Everything that a batch is made of."""
        return (self.pixels, self.labels)

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, indices: Sequence[int] | Indices) -> Batch:
        """The images as bytes; a copy to the GPU moves a quarter of the size of floats."""
        chosen = np.asarray(indices)
        return {"pixels": torch.from_numpy(self.pixels[chosen]), "labels": torch.from_numpy(self.labels[chosen])}


@dataclass(frozen=True)
class ImageFiles:
    """Images that are decoded each time they are used, because the pixels of the split do not fit."""

    split: Split
    column: str
    size: int
    in_memory = False
    lengths = None

    @property
    def arrays(self) -> tuple[NDArray[Any], ...]:
        """What is known of the images without reading them."""
        return (self.split.labels,)

    def __len__(self) -> int:
        return len(self.split)

    def batch(self, indices: Sequence[int] | Indices) -> Batch:
        """The images as bytes, (images, 3, size, size).

        Raises:
            UserError: An image cannot be decoded.
        """
        warnings.filterwarnings("ignore", module="PIL")  # a batch may be made by a process of its own
        rows = [int(index) for index in indices]
        pixels = []
        for row, value in zip(rows, self.split.rows[self.column][rows], strict=True):
            try:
                pixels.append(resize(read_pixels(value), self.size))
            except BrokenImageError as error:
                place = f"{_place(self.split, row, value)} of {self.split.name}"
                message = f"the image in {place} cannot be decoded: {error.reason}"
                raise UserError(message, hint=_SKIP) from error
        return {"pixels": torch.stack(pixels), "labels": torch.from_numpy(self.split.labels[rows])}


@dataclass(frozen=True)
class DecodedSplit:
    """The images of a split, without those that cannot be decoded."""

    examples: DecodedImages | ImageFiles
    notices: tuple[str, ...]


def open_images(
    split: Split, column: str, size: int, on_broken: Literal["refuse", "skip"], group: Group
) -> DecodedSplit:
    """Opens the images of a split, and decodes them now if there is room for their pixels.

    Args:
        split: The split, the same on every rank.
        column: The column with the images.
        size: The height and width of the model's input, in pixels.
        on_broken: The treatment of images that cannot be decoded. If there is no room for the pixels, "refuse" raises
            the error when a batch contains such an image, and "skip" reads all images once and caches the result.
        group: The ranks; all of them call this function. The other ranks read what rank 0 has decoded and cached.

    Raises:
        UserError: Images cannot be decoded, and on_broken is "refuse" or no image is left.
    """
    warnings.filterwarnings("ignore", module="PIL")  # errors and notices of this module report what matters
    decoder = ImageDecoder(split, column, size, group)
    shapes = decoder.shapes()
    arrays: Arrays | None = None
    # The condition depends on the data only, because all ranks must agree on whether they wait for rank 0.
    if decoder.may_cache(shapes[0]):
        key = decoder.key()
        with group.main_first():
            arrays = decoder.arrays(key, shapes)
    broken = _broken_on_all_ranks(decoder, arrays, on_broken)
    notices: tuple[str, ...] = ()
    if broken is not None and len(broken):
        notices = (_left_out(split, column, broken, on_broken),)
        split = split.select(np.delete(np.arange(len(split)), broken))
    if arrays is None:
        return DecodedSplit(ImageFiles(split, column, size), notices)
    return DecodedSplit(DecodedImages(arrays["pixels"], split.labels), notices)


def _broken_on_all_ranks(decoder: ImageDecoder, arrays: Arrays | None, on_broken: str) -> Indices | None:
    """The rows that cannot be decoded, the same on every rank; None if the images have not all been read.

    Raises:
        UserError: This host can decode other images than the host of rank 0.
    """
    group = decoder.group
    own: Indices | None = None  # None: no room for the pixels, so the images have not all been read
    if arrays is not None:
        own = arrays["broken"]
    if group.broadcast_from_main(own is None) and on_broken == "skip":
        with group.main_first():  # reading all images may take an hour
            if group.is_main:
                own = decoder.find_broken()
    # A host without room leaves out the same images as rank 0.
    broken = group.broadcast_from_main(own)
    if broken is None:
        return own
    if own is not None and not np.array_equal(broken, own):
        hosts = f"hosts {group.hosts[0]} and {socket.gethostname()}"
        raise UserError(f"{hosts} can decode different images of {decoder.split.name}", hint="are the files the same?")
    return broken


def _left_out(split: Split, column: str, broken: Indices, on_broken: str) -> str:
    """The notice about images that are left out.

    Raises:
        UserError: on_broken is "refuse", or no image would be left.
    """
    first = broken[:_NAMED].tolist()
    values = split.rows[column][first]
    named = [_place(split, row, value) for row, value in zip(first, values, strict=True)]
    if on_broken == "skip" and len(broken) < len(split):
        names = ", ".join([*named, *["..."] * (len(broken) > _NAMED)])
        return f"left out {len(broken)} of {len(split)} images of {split.name} that cannot be decoded: {names}"
    try:
        read_pixels(values[0])
        reason = "it can be decoded now, so the file was written in the meantime"
    except BrokenImageError as error:
        reason = error.reason
    message = (
        f"{len(broken)} of {len(split)} images of {split.name} cannot be decoded, the first in {named[0]}: {reason}"
    )
    hint: str | None = None
    if len(broken) < len(split):
        hint = _SKIP
    raise UserError(message, hint=hint)


def _place(split: Split, row: int, value: Value) -> str:
    place = f"row {split.numbers[row]}"
    if value is not None and value["path"]:
        return f"{place} ({value['path']})"
    return place
