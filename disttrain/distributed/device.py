"""The device of a rank: its choice, its name and its settings."""

from __future__ import annotations

import ctypes
import os
import socket
import warnings

import torch

from disttrain.environment.cpu_name import cpu_name
from disttrain.environment.rank_env import RankEnv
from disttrain.errors import UserError

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h


def gpu_uuid(device: torch.device) -> str | None:
    """The UUID of this rank's GPU or MIG slice, as `nvidia-smi -L` prints it but without its prefix; None on a CPU."""
    if device.type != "cuda":
        return None
    return str(torch.cuda.get_device_properties(device).uuid)


def device_name(device: torch.device) -> str:
    """The model name of the GPU, or of the CPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return cpu_name()


def choose_device(env: RankEnv, wanted: str) -> torch.device:
    """The device of this rank.

    With --gpus-per-node, Slurm shows a rank all GPUs of its job on the host; with --gpus-per-task, only its own GPU.
    The device index counts the GPUs that torch sees.

    Args:
        env: The environment of this rank.
        wanted: The config's device: auto, cuda or cpu.

    Raises:
        UserError: The config requests a GPU or Slurm allocated one, but torch sees none.
    """
    if wanted == "cpu":
        return torch.device("cpu")
    visible = torch.cuda.device_count()
    if visible == 0:
        if wanted == "cuda":
            raise _no_gpu_error("device is 'cuda'")
        if env.gpus_allocated:
            raise _no_gpu_error("GPUs were allocated")
        return torch.device("cpu")  # `cpu_notice` reports it
    device = torch.device("cuda", env.host_rank % visible)
    torch.cuda.set_device(device)
    return device


def cpu_notice(device: torch.device, wanted: str) -> str | None:
    """A notice if the config leaves the device open and this rank has no GPU; None otherwise."""
    if wanted != "auto" or device.type != "cpu":
        return None
    host = socket.gethostname()
    return f"trains on the CPU: device is auto, and torch {torch.__version__} sees no GPU on {host} ({_why_no_gpu()})"


def _no_gpu_error(reason: str) -> UserError:
    return UserError(
        f"{reason}, but torch {torch.__version__} sees no GPU on {socket.gethostname()}",
        hint="check the driver and the build of torch, or set device: cpu",
    )


def _why_no_gpu() -> str:
    """The reason that torch gives for seeing no GPU: its first sentence."""
    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]
    except (RuntimeError, AssertionError) as error:  # AssertionError: a build of torch without CUDA
        return str(error).partition("\n")[0].partition(". ")[0].rstrip(".")
    return "no GPU is visible"


def compute_deterministically() -> None:
    """Makes torch choose kernels that give the same bits each time, and fail on an operation without such a kernel."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it at its first call
    torch.use_deterministic_algorithms(True)
    # Otherwise torch fills each `torch.empty`, which nothing here reads before it is written. The buffers of the first
    # checkpoint took 1.2 s longer (52 MB, docs/gpu.md).
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def use_full_precision(device: torch.device) -> None:
    """Makes fp32 convolutions on a GPU as exact as fp32 matrix products; torch's default for them is TF32.

    TF32 has 10 bits of mantissa instead of 23. Without this, ViT's patch embedding in fp32 would use it.
    """
    if device.type == "cuda":
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*TF32")  # torch 2.9 and 2.10 advise the newer switches
            # The older of torch's two switches: all versions have it, and a mixture of both raises an error.
            torch.backends.cudnn.allow_tf32 = False
            torch.backends.cuda.matmul.allow_tf32 = False


def use_tf32(device: torch.device) -> None:
    """Makes matrix products and convolutions in fp32 round their inputs to TF32.

    Raises:
        UserError: The device cannot.
    """
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < (8, 0):
        message = f"tf32 needs an NVIDIA GPU from Ampere on, and this rank has {device_name(device)}"
        raise UserError(message, where="precision", hint="write precision: fp32")
    torch.backends.cudnn.allow_tf32 = True
    torch.backends.cuda.matmul.allow_tf32 = True


def keep_freed_memory(device: torch.device) -> None:
    """Makes the C library keep the memory of freed tensors on a CPU for the tensors of the next step.

    By default glibc returns large blocks to the system. MiniLM with batch 4 then had 2,000 page faults more in each
    step, 3 to 6 % of its time. The user's own settings of glibc stay.
    """
    libc = ctypes.CDLL(None)
    own = any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ)
    if device.type == "cpu" and not own and hasattr(libc, "mallopt"):  # musl has none
        libc.mallopt(_M_MMAP_THRESHOLD, 32 * 2**20)  # bytes; glibc's maximum
        libc.mallopt(_M_TRIM_THRESHOLD, 2**30)


def choose_attention(*, many_shapes: bool) -> None:
    """Disables cuDNN's attention if the batches have many shapes; torch prefers it in bf16 on Hopper.

    It plans each new shape for about 50 ms in the forward pass and as much in the backward pass. In 300 steps of
    BERT-base, 81 steps took 114 ms instead of 19 (docs/gpu.md).
    """
    torch.backends.cuda.enable_cudnn_sdp(not many_shapes)
