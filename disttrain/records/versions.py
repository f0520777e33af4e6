"""The versions of Python and of the packages that a run uses."""

from __future__ import annotations

import functools
import importlib.metadata
import platform

# The packages that affect a result, and those that only start the ranks: a queued job is read by the version that is
# installed when it starts.
_COMPUTING = ("disttrain-sweeps", "torch", "torchvision", "transformers", "tokenizers", "datasets", "numpy")
STARTING = ("submitit",)


@functools.cache  # each lookup reads and parses a file, and a run needs the versions in three places
def versions() -> dict[str, str]:
    """The installed versions by package name, without packages that are not installed (torch on a login node)."""
    installed = {"python": platform.python_version()}
    for name in (*_COMPUTING, *STARTING):
        try:
            installed[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return installed
