"""The versions of Python and of the packages that affect a result."""

from __future__ import annotations

import functools
import importlib.metadata
import platform

# submitit does not affect a result, but a queued job is read by the version that is installed when it starts.
_PACKAGES = ("disttrain-sweeps", "torch", "torchvision", "transformers", "tokenizers", "datasets", "numpy", "submitit")


@functools.cache  # each lookup reads and parses a file, and a run needs the versions in three places
def versions() -> dict[str, str]:
    """The installed versions by package name, without packages that are not installed (torch on a login node)."""
    installed = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            installed[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return installed
