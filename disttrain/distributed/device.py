"""The device of a rank: which one, its name and its settings."""

from __future__ import annotations

import os
import platform
import socket
from pathlib import Path

import torch

from disttrain.environment.rank_env import RankEnv
from disttrain.errors import UserError


def gpu_uuid(device: torch.device) -> str | None:
    """Of the GPU, or of the MIG slice, that is this rank's, as `nvidia-smi -L` has it without its prefix."""
    if device.type != "cuda":
        return None
    return str(torch.cuda.get_device_properties(device).uuid)


def device_name(device: torch.device) -> str:
    """The model of the GPU, or of the CPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def choose_device(env: RankEnv, wanted: str) -> torch.device:
    """The device of this rank.

    Slurm shows a rank all GPUs of its job on the host (--gpus-per-node) or only its own (--gpus-per-task): the index is
    that among the GPUs that torch sees.

    Raises:
        UserError: GPUs were asked for or allocated, and torch sees none.
    """
    if wanted == "cpu":
        return torch.device("cpu")
    visible = torch.cuda.device_count()
    if visible == 0:
        if wanted == "cuda" or env.gpus_allocated:
            reason = "device is 'cuda'" if wanted == "cuda" else "GPUs were allocated"
            raise UserError(
                f"{reason}, but torch {torch.__version__} sees no GPU on {socket.gethostname()}",
                hint="check the driver and the build of torch, or set device: cpu",
            )
        return torch.device("cpu")
    device = torch.device("cuda", env.host_rank % visible)
    torch.cuda.set_device(device)
    return device


def compute_deterministically() -> None:
    """Makes torch choose kernels that give the same bits each time, and refuse where it has none."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it at its first call
    torch.use_deterministic_algorithms(True)
