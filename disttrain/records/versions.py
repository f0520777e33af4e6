"""The versions of what a run computes with."""

from __future__ import annotations

import functools
import importlib.metadata
import platform

_LIBRARIES = ("torch", "torchvision", "transformers", "tokenizers", "datasets", "numpy")


@functools.cache  # each is a file that is read and parsed, and a run tells them in three places
def versions() -> dict[str, str]:
    """Of Python and of each library, by name."""
    return {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in _LIBRARIES}}
