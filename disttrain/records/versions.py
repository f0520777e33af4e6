"""The versions of Python and of the packages that decide a result."""

from __future__ import annotations

import functools
import importlib.metadata
import platform

# submitit starts the ranks and decides no result, but a queued job is read by the version that is installed then.
_PACKAGES = ("disttrain-sweeps", "torch", "torchvision", "transformers", "tokenizers", "datasets", "numpy", "submitit")


@functools.cache  # each is a file that is read and parsed, and a run asks in three places
def versions() -> dict[str, str]:
    """The installed versions by name; a package that is not installed (torch on a login node) is left out."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
