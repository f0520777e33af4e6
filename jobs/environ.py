"""The environment that a submission starts in: without the variables of a job or launcher that sweep itself runs in."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

# Of a surrounding job or launcher: in the environment of a new job they would describe the wrong one. SLURM_CPU_BIND
# alone has cost a fleet a factor of three. SLURM_CONF says where the cluster is and SLURM_JWT who asks: both stay.
_LEAKING = ("SLURM_", "SLURMD_", "SRUN_", "SBATCH_", "SUBMITIT_", "TORCHELASTIC_", "PMI_", "PMIX_", "OMPI_")
_LEAKING_NAMES = frozenset({
    "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "GROUP_WORLD_SIZE", "ROLE_RANK",
    "ROLE_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT",
})  # fmt: skip
_KEPT = frozenset({"SLURM_CONF", "SLURM_JWT", "SUBMITIT_PREEMPT_SIGNAL"})


# GPUs of the surrounding job: on another node they are others, or none.
_GPU_NAMES = frozenset({"CUDA_VISIBLE_DEVICES", "GPU_DEVICE_ORDINAL", "ROCR_VISIBLE_DEVICES", "ZE_AFFINITY_MASK"})


@contextmanager
def clean_environ(*, other_node: bool = False) -> Iterator[None]:
    """Hides from what is started inside it the variables of a job or launcher that sweep itself runs in.

    Args:
        other_node: What is started runs elsewhere, where this node's GPUs mean nothing.
    """
    names = _LEAKING_NAMES | (_GPU_NAMES if other_node else frozenset())
    hidden = {
        name: os.environ.pop(name)
        for name in list(os.environ)
        if (name.startswith(_LEAKING) or name in names) and name not in _KEPT
    }
    try:
        yield
    finally:
        os.environ.update(hidden)
