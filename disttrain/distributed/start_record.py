"""What a run writes down about itself: its place, its device, its versions, and the threads that it computes with."""

from __future__ import annotations

import dataclasses
import os
import platform
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from disttrain.config.train_config import TrainConfig, run_id
from disttrain.environment.rank_env import RankEnv
from disttrain.records.record_types import StartRecord
from disttrain.records.summary_types import RunInfo
from disttrain.records.versions import versions

if TYPE_CHECKING:
    import torch

    from disttrain.distributed.group import Group


def choose_threads(env: RankEnv, environ: Mapping[str, str], cores: int) -> int:
    """Threads that torch computes with on a rank: its share of the cores of its host.

    Args:
        env: This rank's place.
        environ: OMP_NUM_THREADS is obeyed, SLURM_CPUS_PER_TASK is the share that Slurm gave.
        cores: That this process may run on.

    Example:
        >>> choose_threads(RankEnv(world_size=4, local_world_size=4), {}, 16)
        4
    """
    asked = environ.get("OMP_NUM_THREADS", "")
    # torchrun sets 1 for everyone where the user has set nothing, which would leave most cores idle.
    by_torchrun = env.launcher == "torchrun" and env.local_world_size > 1 and asked == "1"
    if asked.isdecimal() and not by_torchrun:
        return max(1, int(asked))
    of_task = environ.get("SLURM_CPUS_PER_TASK", "") if env.launcher == "slurm" else ""
    if of_task.isdecimal():
        return max(1, min(int(of_task), cores))
    return max(1, cores // env.host_world_size)


def shape(env: RankEnv) -> str:
    return f"{env.num_nodes}x{env.local_world_size}"


def run_info(config: TrainConfig, env: RankEnv) -> RunInfo:
    return RunInfo(
        run_id=run_id(shape(env), config),
        allocation=shape(env),
        nodes=env.num_nodes,
        gpus_per_node=env.local_world_size,
        world_size=env.world_size,
        train=dataclasses.asdict(config),
        versions=versions(),
    )


def start_record(
    group: Group,
    *,
    first_step: int = 1,
    parameters: int = 0,
    train_examples: int = 0,
    eval_examples: int = 0,
    notices: tuple[str, ...] = (),
) -> StartRecord:
    import torch

    env = group.env
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
        device=str(group.device),
        device_name=device_name(group.device),
        gpu_uuid=gpu_uuid(group.device),
        backend=group.backend,
        shared_gpu=group.shared_gpu,
        folded=env.folded,
        threads=torch.get_num_threads(),
        versions=versions(),
        parameters=parameters,
        train_examples=train_examples,
        eval_examples=eval_examples,
        notices=notices,
    )


def gpu_uuid(device: torch.device) -> str | None:
    """Of the GPU, or of the MIG slice, that is this rank's, as `nvidia-smi -L` has it without its prefix."""
    if device.type != "cuda":
        return None
    import torch

    return str(torch.cuda.get_device_properties(device).uuid)


def device_name(device: torch.device) -> str:
    """The model of the GPU, or of the CPU."""
    if device.type == "cuda":
        import torch

        return torch.cuda.get_device_name(device)
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()
