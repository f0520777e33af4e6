"""The start record of a rank: its position among the ranks, device, versions and threads."""

from __future__ import annotations

import os
import socket
import time

import torch

from disttrain.distributed.device import device_name, gpu_uuid
from disttrain.distributed.group import Group
from disttrain.records.record_types import StartRecord
from disttrain.records.versions import versions


def start_record(
    group: Group,
    *,
    first_step: int = 1,
    parameters: int = 0,
    model_changes: tuple[str, ...] | None = None,
    train_examples: int = 0,
    eval_examples: int = 0,
    notices: tuple[str, ...] = (),
) -> StartRecord:
    """The start record of this rank.

    Args:
        group: The ranks.
        first_step: The first step that this attempt trains.
        parameters: The number of parameters of the model.
        model_changes: The config fields that changed the model for speed.
        train_examples: The number of training examples.
        eval_examples: The number of evaluation examples.
        notices: The notices so far.
    """
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
        model_changes=model_changes,
        train_examples=train_examples,
        eval_examples=eval_examples,
        notices=notices,
    )
