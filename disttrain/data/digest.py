"""Identifies the examples of a run by their content, so that a run does not resume on other data."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from disttrain.data.batches import Examples


@dataclasses.dataclass(frozen=True)
class DataState:
    """What a checkpoint says about the data.

    Attributes:
        examples: The number of training examples.
        digest: A digest of all examples and class names.
    """

    examples: int
    digest: str


def data_state(train: Examples, held_out: Examples | None, label_names: Iterable[str], *used: object) -> DataState:
    """The state of the data, computed at about 10^9 bytes per second.

    Args:
        train: The training examples. Examples without `arrays`, as those of a family of your own, count by number only.
        held_out: The evaluation examples.
        label_names: The class names.
        used: Arrays on which the model depends too, such as the token ids that its embedding has; others are ignored.
    """
    digest = hashlib.blake2b(digest_size=16)
    for name in label_names:
        digest.update(f"{name}\0".encode("utf-8", "surrogatepass"))
    arrays = [array for examples in (train, held_out) for array in _arrays(examples)]
    arrays += [array for array in used if isinstance(array, np.ndarray)]
    for array in arrays:
        digest.update(f"{array.dtype.str} {array.shape} ".encode())
        if array.size:
            digest.update(np.ascontiguousarray(array).data)
    return DataState(len(train), digest.hexdigest())


def _arrays(examples: Examples | None) -> tuple[NDArray[np.generic], ...]:
    if examples is None:
        return ()
    found: tuple[NDArray[np.generic], ...] = getattr(examples, "arrays", ())
    return (*found, np.array([len(examples)]))
