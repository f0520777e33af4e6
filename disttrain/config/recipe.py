"""What the seeds of a run decide: one random stream for each purpose, and the version of these rules."""

from __future__ import annotations

import hashlib
from typing import Literal

# The version of everything that decides the losses of an unchanged config: the order of the data, the held-out
# examples, the random streams, and the precision. Increase it with every change of them: a checkpoint of another
# version is then refused, and rows of different versions are not comparable.
RECIPE_VERSION = 2
FIRST_VERSION = 1  # of releases that did not record it

Purpose = Literal["weights", "dropout", "order", "held-out", "train subset", "eval subset"]


def stream_seed(seed: int, purpose: Purpose, *numbers: int) -> int:
    """The seed of one random stream, from 0 to 2^63 - 1.

    Streams of different seeds, purposes or numbers are independent. With a sum, such as seed + rank, two runs would
    share a stream.

    Args:
        seed: The seed in the config.
        purpose: What the random numbers are for.
        numbers: The rank or the epoch, if each has its own stream.

    Example:
        >>> stream_seed(0, "dropout", 1) == stream_seed(1, "dropout", 0)
        False
    """
    text = " ".join(map(str, (seed, *numbers, purpose)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1
