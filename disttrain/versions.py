"""The versions of what a run computes with."""

from __future__ import annotations

import importlib.metadata
import platform

_LIBRARIES = ("torch", "torchvision", "transformers", "tokenizers", "datasets", "numpy")


def versions() -> dict[str, str]:
    """Of Python and of each library, by name."""
    return {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in _LIBRARIES}}
