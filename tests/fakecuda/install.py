"""Puts fake GPUs under torch, so that code for GPUs runs on a CPU.

A machine without a GPU cannot run the branches for GPUs, so torch.cuda itself is replaced: devices, events, the queue,
random generators, pinned memory, waits, NVML, and NCCL by gloo. Tensors stay in host memory. Kernels, real times, a
GPU's rounding and compiled models are not faked.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pynvml
import torch
import torch.distributed

from disttrain.config.train_config import TrainConfig
from disttrain.environment.rank_env import RankEnv
from tests.fakecuda.gpu import FakeGpus, FakeStream, Properties, event_class
from tests.fakecuda.nvml import FakeNvml
from tests.fakecuda.tensors import FakeTensors

NAME = "NVIDIA H100 80GB HBM3"
Patch = Callable[[Any, str, Any], None]


def make_gpus(count: int, name: str = NAME) -> FakeGpus:
    """This number of GPUs, with the PCI addresses and UUIDs of a host."""
    host = os.uname().nodename
    return FakeGpus(
        tuple(
            Properties(name, str(uuid.uuid5(uuid.NAMESPACE_DNS, f"{host}/{index}")), pci_bus_id=0x3B + index)
            for index in range(count)
        )
    )


@contextmanager
def fake_cuda(count: int = 1, name: str = NAME) -> Iterator[FakeGpus]:
    """Fake GPUs for the duration of the block, in this thread."""
    replaced: list[tuple[Any, str, Any]] = []

    def patch(owner: Any, attribute: str, value: Any) -> None:
        replaced.append((owner, attribute, getattr(owner, attribute)))
        setattr(owner, attribute, value)

    gpus = make_gpus(count, name)
    _patch_torch(gpus, patch)
    try:
        with FakeTensors(gpus):
            yield gpus
    finally:
        for owner, attribute, value in reversed(replaced):
            setattr(owner, attribute, value)


def install(count: int = 1, name: str = NAME) -> FakeGpus:
    """Fake GPUs until the process ends."""
    gpus = make_gpus(count, name)
    _patch_torch(gpus, setattr)
    FakeTensors(gpus).__enter__()  # type: ignore[no-untyped-call]
    return gpus


def on_fake_cuda(
    gpus: int, target: Callable[..., object], config: TrainConfig, env: RankEnv, output_dir: Path
) -> object:
    """The target of a rank's process, which sees this number of fake GPUs."""
    install(gpus)
    return target(config, env, output_dir)


def _patch_torch(gpus: FakeGpus, patch: Patch) -> None:
    def index_of(device: Any = None) -> int:
        if device is None:
            return gpus.current
        if isinstance(device, int):
            return device
        index = torch.device(device).index
        return gpus.current if index is None else index

    def set_device(device: Any) -> None:
        gpus.current = index_of(device)

    def set_sync_debug_mode(mode: Any) -> None:
        gpus.sync_debug = {0: "default", 1: "warn", 2: "error"}.get(mode, mode)

    cuda = torch.cuda
    replacements: dict[str, Any] = {
        "is_available": lambda: bool(gpus.properties),
        "is_initialized": lambda: True,
        "init": lambda: None,
        "_lazy_init": lambda: None,
        "_is_in_bad_fork": lambda: False,
        "device_count": lambda: len(gpus.properties),
        "current_device": lambda: gpus.current,
        "set_device": set_device,
        "get_device_properties": lambda device=None: gpus.properties[index_of(device)],
        "get_device_name": lambda device=None: gpus.properties[index_of(device)].name,
        "get_device_capability": lambda device=None: (9, 0),
        "is_bf16_supported": lambda *_, **__: True,
        "is_current_stream_capturing": lambda: False,
        "synchronize": lambda device=None: gpus.wait(),
        "empty_cache": lambda: None,
        "current_stream": lambda device=None: FakeStream(torch.device("cuda", index_of(device))),
        "Event": event_class(gpus),
        "manual_seed": gpus.seed_all,
        "manual_seed_all": gpus.seed_all,
        "get_rng_state": lambda device=None: gpus.rng_state(),
        "set_rng_state": lambda state, device=None: gpus.set_rng_state(state),
        "set_sync_debug_mode": set_sync_debug_mode,
        "get_sync_debug_mode": lambda: ("default", "warn", "error").index(gpus.sync_debug),
    }
    for name, value in replacements.items():
        patch(cuda, name, value)
    patch(torch.accelerator, "current_stream", replacements["current_stream"])
    patch(torch.accelerator, "current_device_index", replacements["current_device"])
    patch(torch.accelerator, "synchronize", replacements["synchronize"])
    _patch_process_groups(gpus, patch)
    patch(pynvml, "nvmlLib", FakeNvml(gpus))
    patch(pynvml, "_nvmlGetFunctionPointer_cache", {})


def _patch_process_groups(gpus: FakeGpus, patch: Patch) -> None:
    """NCCL's groups are gloo's."""
    real = torch.distributed.init_process_group

    def init_process_group(backend: str, **arguments: Any) -> None:
        gpus.inits.append({"backend": backend, **arguments})
        device = arguments.pop("device_id", None)
        assert (device is not None) == (backend == "nccl"), "NCCL connects early only if it gets the device"
        real("gloo", **arguments)

    patch(torch.distributed, "init_process_group", init_process_group)
