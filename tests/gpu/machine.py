"""The machine that `make gpu` runs on: its GPUs, versions, and what it lacks."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import socket
from collections.abc import Mapping
from dataclasses import dataclass

import torch

OPTIONAL = ("pynvml",)  # without it, there is no energy
_VERSIONS = ("torch", "torchvision", "transformers", "tokenizers", "datasets", "numpy")


@dataclass(frozen=True)
class Machine:
    """What the page says of the machine.

    Attributes:
        gpus: The number of GPUs.
        gpu_name: The name of the first one.
        facts: One line each.
        missing: The modules that cannot be imported, and why.
    """

    gpus: int
    gpu_name: str
    facts: tuple[str, ...]
    missing: Mapping[str, str]


def why_no_gpu() -> str | None:
    """One line if torch sees no GPU; None otherwise."""
    if torch.cuda.device_count() > 0:
        return None
    return f"no GPU: torch {torch.__version__} sees none on {socket.gethostname()}; nothing was run"


def read_machine(missing: Mapping[str, str]) -> Machine:
    """The facts of this machine, which has a GPU and lacks these modules."""
    gpus = torch.cuda.device_count()
    properties = torch.cuda.get_device_properties(0)
    facts = (
        f"GPU: {gpus} x {properties.name}, {properties.total_memory / 2**30:.0f} GiB,"
        f" {properties.multi_processor_count} multiprocessors, driver {_driver()}, CUDA {torch.version.cuda}",
        f"host: {len(os.sched_getaffinity(0))} CPU cores, {platform.system()} {platform.release()}",
        f"Python {platform.python_version()}, {', '.join(_versions())}",
    )
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
