"""The packages of the extra [train], and the error where one of them is not installed."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator

from disttrain.errors import UserError

# By the names that are imported.
_TRAIN_PACKAGES = ("torch", "torchvision", "transformers", "datasets", "tokenizers", "huggingface_hub", "numpy", "PIL")


@contextlib.contextmanager
def naming_the_extra() -> Iterator[None]:
    """Turns the error of a missing package of the extra [train] into one that says how to install it."""
    try:
        yield
    except ModuleNotFoundError as error:
        # Python reports a missing package by its own name, also for `import torch.nn`. A missing submodule of an
        # installed package is another mistake, and its traceback says where.
        if error.name not in _TRAIN_PACKAGES:
            raise
        raise UserError(
            f"the package {error.name!r} is not installed for {sys.executable}",
            hint="with its pip, in the checkout: pip install '.[train]'; or set python in the cluster profile",
        ) from error
