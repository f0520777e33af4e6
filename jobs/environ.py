"""The environment of a submission, without the variables of the job or launcher around `sweep` itself."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

# Variables of the surrounding job or launcher. In a new job they would describe the wrong job: a leaked SLURM_CPU_BIND
# alone has made runs of a fleet three times slower. SLURM_CONF (the cluster) and SLURM_JWT (the user) stay.
_LEAKING = ("SLURM_", "SLURMD_", "SRUN_", "SBATCH_", "SUBMITIT_", "TORCHELASTIC_", "PMI_", "PMIX_", "OMPI_")
_LEAKING_NAMES = frozenset({
    "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "GROUP_WORLD_SIZE", "ROLE_RANK",
    "ROLE_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT",
})  # fmt: skip
_STAYING = frozenset({"SLURM_CONF", "SLURM_JWT", "SUBMITIT_PREEMPT_SIGNAL"})

# The GPUs of the surrounding job. Another node has other GPUs, or none.
_GPU_NAMES = frozenset({"CUDA_VISIBLE_DEVICES", "GPU_DEVICE_ORDINAL", "ROCR_VISIBLE_DEVICES", "ZE_AFFINITY_MASK"})


@contextmanager
def clean_environ(*, other_node: bool = False) -> Iterator[None]:
    """Hides the variables of the surrounding job or launcher from the processes that start inside it.

    Args:
        other_node: Whether the new process runs on another node, where the GPU numbers of this node are wrong.
    """
    names = set(_LEAKING_NAMES)
    if other_node:
        names |= _GPU_NAMES
    hidden = {
        name: os.environ.pop(name)
        for name in list(os.environ)
        if (name.startswith(_LEAKING) or name in names) and name not in _STAYING
    }
    try:
        yield
    finally:
        os.environ.update(hidden)
