"""The machine that `make gpu` runs on: its GPUs, versions, and what it lacks."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import socket
from dataclasses import dataclass

import torch

from tests.gpu.wheels import is_installed

# Without these no run is possible.
NEEDED = (
    "annotated_types",
    "pydantic",
    "datasets",
    "pyarrow",
    "pandas",
    "transformers",
    "tokenizers",
    "numpy",
    "PIL",
    "psutil",
)
_VERSIONS = ("torch", "torchvision", "transformers", "tokenizers", "datasets", "numpy")


@dataclass(frozen=True)
class Machine:
    """What the page says of the machine."""

    gpus: int
    gpu_name: str
    facts: tuple[str, ...]
    missing: tuple[str, ...]


def why_no_gpu() -> str | None:
    """One line if torch sees no GPU; None otherwise."""
    if torch.cuda.device_count() > 0:
        return None
    return f"no GPU: torch {torch.__version__} sees none on {socket.gethostname()}; nothing was run"


def read_machine() -> Machine:
    """The facts of this machine, which has a GPU."""
    gpus = torch.cuda.device_count()
    properties = torch.cuda.get_device_properties(0)
    facts = (
        f"GPU: {gpus} x {properties.name}, {properties.total_memory / 2**30:.0f} GiB,"
        f" {properties.multi_processor_count} multiprocessors, driver {_driver()}, CUDA {torch.version.cuda}",
        f"host: {len(os.sched_getaffinity(0))} CPU cores, {platform.system()} {platform.release()}",
        f"Python {platform.python_version()}, {', '.join(_versions())}",
    )
    missing = tuple(name for name in (*NEEDED, "torchvision", "pynvml", "accelerate") if not is_installed(name))
    return Machine(gpus, properties.name, facts, missing)


def _versions() -> list[str]:
    found = []
    for name in _VERSIONS:
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _driver() -> str:
    try:
        import pynvml

        pynvml.nvmlInit()
        version = pynvml.nvmlSystemGetDriverVersion()
    except Exception:  # noqa: BLE001 - the module or the library may be missing, or be a fake
        return "unknown"
    return version.decode() if isinstance(version, bytes) else str(version)
