"""The start record of a rank: its position among the ranks, device, versions, threads and transport."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from disttrain.distributed.device import device_name, gpu_uuid
from disttrain.distributed.group import Group
from disttrain.records.start_types import StartRecord, cpu_list
from disttrain.records.versions import versions


def start_record(
    group: Group,
    *,
    first_step: int = 1,
    recipe_version: int | None = None,
    parameters: int = 0,
    model_changes: tuple[str, ...] | None = None,
    train_examples: int = 0,
    eval_examples: int = 0,
    notices: tuple[str, ...] = (),
    gpu_settings: Mapping[str, Any] | None = None,
    shared_memory: bool = False,
) -> StartRecord:
    """The start record of this rank.

    Args:
        group: The ranks.
        first_step: The first step that this attempt trains.
        recipe_version: The version of what decides the losses; None if it trains nothing.
        parameters: The number of parameters of the model.
        model_changes: The config fields that changed the model for speed.
        train_examples: The number of training examples.
        eval_examples: The number of evaluation examples.
        notices: The notices so far.
        gpu_settings: The fields of the record that NVML reports, by name.
        shared_memory: Whether the ranks exchange gradients through shared memory.
    """
    env = group.env
    cpus = os.sched_getaffinity(0)
    return StartRecord(
        time_s=time.time(),
        rank=env.rank,
        world_size=env.world_size,
        local_rank=env.local_rank,
        node_rank=env.node_rank,
        host=socket.gethostname(),
        pid=os.getpid(),
        job_id=env.job_id,
        restart_count=env.restart_count,
        first_step=first_step,
        recipe_version=recipe_version,
        device=str(group.device),
        device_name=device_name(group.device),
        gpu_uuid=gpu_uuid(group.device),
        backend=group.backend,
        shared_gpu=group.shared_gpu,
        folded=env.folded,
        threads=torch.get_num_threads(),
        cpus=len(cpus),
        cpu_affinity=cpu_list(cpus),
        versions=versions(),
        **_cuda_versions(group.device),
        transport="shared memory" if shared_memory else transport_of(group),
        **(gpu_settings or {}),
        topology_addr=os.environ.get("SLURM_TOPOLOGY_ADDR") or None,
        parameters=parameters,
        model_changes=model_changes,
        train_examples=train_examples,
        eval_examples=eval_examples,
        notices=notices,
    )


def _cuda_versions(device: torch.device) -> dict[str, Any]:
    """The versions of CUDA and NCCL that torch uses; None on a CPU, and for a build of torch that has none."""
    if device.type != "cuda":
        return {"cuda_version": None, "nccl_version": None}
    nccl: str | None = None
    try:
        version: Any = torch.cuda.nccl.version()  # type: ignore[no-untyped-call]
        nccl = ".".join(map(str, version))
    except (AttributeError, ImportError, RuntimeError, TypeError):
        pass  # a build without NCCL
    return {"cuda_version": torch.version.cuda, "nccl_version": nccl}


def transport_of(group: Group) -> str | None:
    """What these ranks exchange data over."""
    return transport(group.backend, group.on_one_machine, os.environ, bool(active_ib_ports()))


def transport(backend: str | None, on_one_machine: bool, environ: Mapping[str, str], has_ib: bool) -> str | None:
    """What the ranks exchange data over, as far as it can be known without NCCL's own log.

    Args:
        backend: nccl or gloo; None with one rank.
        on_one_machine: Whether all ranks run on the same machine.
        environ: The environment with NCCL's variables.
        has_ib: Whether this host has an active port of InfiniBand or RoCE.

    Returns:
        None with one rank; one host; IB (or RoCE); sockets; or the name of another network that NCCL is to use.

    Example:
        >>> transport("nccl", False, {}, True), transport("nccl", False, {"NCCL_IB_DISABLE": "1"}, True)
        ('IB', 'sockets')
    """
    if backend is None:
        return None
    if on_one_machine:
        return "one host"
    if backend != "nccl":
        return "sockets"
    chosen = environ.get("NCCL_NET") or environ.get("NCCL_NET_PLUGIN") or ""
    if chosen and chosen.lower() not in ("ib", "socket", "none"):
        return chosen
    if chosen.lower() == "socket" or environ.get("NCCL_IB_DISABLE", "0") not in ("", "0") or not has_ib:
        return "sockets"
    return "IB"


def active_ib_ports(folder: Path = Path("/sys/class/infiniband")) -> tuple[str, ...]:
    """The adapters of this host that have an active port of InfiniBand or RoCE, for example mlx5_0."""
    active = set()
    for state in folder.glob("*/ports/*/state"):
        try:
            if "ACTIVE" in state.read_text(encoding="utf-8"):
                active.add(state.relative_to(folder).parts[0])
        except OSError:
            continue  # the port has disappeared
    return tuple(sorted(active))
