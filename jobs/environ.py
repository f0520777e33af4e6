"""The environment of a submission: the user's own variables, without those of the job or launcher around `sweep`."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager

from disttrain.environment.other_launchers import PLACE_VARIABLES

# The variables of the cluster and the user, which hold inside a job too.
_STAYING = frozenset({"SLURM_CONF", "SLURM_JWT", "SUBMITIT_PREEMPT_SIGNAL", "SUBMITIT_LOG_LEVEL"})

# The variables that show that this process is inside a job, and what the job sets. A leaked SLURM_CPU_BIND alone has
# made runs of a fleet three times slower. Slurm sets no other SBATCH_ variable.
_JOB_MARKERS = ("SLURM_JOB_ID", "SLURM_JOBID", "SLURM_STEP_ID", "SLURM_PROCID")
_OF_A_JOB = (
    "SLURM_", "SLURMD_", "SRUN_", "SBATCH_CPU_BIND", "SBATCH_MEM_BIND", "SPANK_", "_SLURM_SPANK_", "PMI_", "PMIX_",
)  # fmt: skip
# Outside a job, a SLURM_ variable is the user's own, for example SLURM_CPU_BIND, and srun reads it in the job. Not
# these: they describe a job, or contradict the plan. SLURM_TIMELIMIT would end the ranks, SLURM_GPUS fail their step.
_OF_THE_PLAN = (
    "SLURM_JOB", "SLURM_STEP", "SLURM_ARRAY_", "SLURM_HET_", "SLURM_NTASKS", "SLURM_NPROCS", "SLURM_NNODES",
    "SLURM_NODE", "SLURM_TASK", "SLURM_PROCID", "SLURM_LOCALID", "SLURM_GTIDS", "SLURM_RESTART_COUNT", "SLURM_SUBMIT_",
    "SLURM_LAUNCH_", "SLURM_SRUN_", "SLURM_TOPOLOGY_", "SLURM_CPUS_", "SLURM_GPUS", "SLURM_GRES", "SLURM_TRES_PER_TASK",
    "SLURM_MEM_PER_", "SLURM_TIMELIMIT", "SLURM_EXPORT_ENV", "SLURM_WORKING_", "SLURM_REMOTE_CWD", "SLURM_STDINMODE",
    "SLURM_STDOUTMODE", "SLURM_STDERRMODE", "SLURM_OPEN_MODE", "SLURM_CLUSTER", "SRUN_CPUS_PER_TASK",
    "SRUN_EXPORT_ENV",
)  # fmt: skip

# What a launcher sets besides the place of a process, by a variable that shows that it started this one. Without it,
# OMPI_MCA_btl and the like are the user's own.
_OF_LAUNCHERS = {
    "OMPI_COMM_WORLD_SIZE": ("OMPI_", "ORTE_", "PRTE_", "PMIX_"),
    "PMIX_RANK": ("PMIX_",),
    "PMI_RANK": ("PMI_", "MPI_LOCAL"),
    "MV2_COMM_WORLD_RANK": ("MV2_COMM_WORLD_",),
    "PALS_RANKID": ("PALS_",),
    "ALPS_APP_PE": ("ALPS_",),
    "JSM_NAMESPACE_RANK": ("JSM_",),
    "FLUX_TASK_RANK": ("FLUX_",),
}
_ALWAYS = ("SUBMITIT_", "TORCHELASTIC_", "OMPI_COMM_WORLD_")
_TORCH_NAMES = frozenset(
    {"GROUP_RANK", "GROUP_WORLD_SIZE", "ROLE_RANK", "ROLE_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"}
)

# The GPUs of this node. Another node has other GPUs, or none.
_GPU_NAMES = frozenset({
    "CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "GPU_DEVICE_ORDINAL", "ZE_AFFINITY_MASK",
})  # fmt: skip


def leftovers(environ: Mapping[str, str], *, other_node: bool = False) -> frozenset[str]:
    """The variables that describe the job, the launcher or the GPUs around this process, and not a new job.

    Args:
        environ: The environment of this process.
        other_node: Whether the new process runs on another node, where the GPU numbers of this node are wrong.

    Example:
        >>> user = {"SLURM_MPI_TYPE": "pmix", "SBATCH_ACCOUNT": "a", "OMPI_MCA_btl": "tcp"}
        >>> sorted(leftovers(user)), sorted(leftovers(user | {"SLURM_JOB_ID": "7"}))
        ([], ['SLURM_JOB_ID', 'SLURM_MPI_TYPE'])
    """
    prefixes = list(_ALWAYS)
    names = PLACE_VARIABLES | _TORCH_NAMES
    if other_node:
        names |= _GPU_NAMES
    if any(marker in environ for marker in _JOB_MARKERS):
        prefixes += _OF_A_JOB
    else:
        prefixes += _OF_THE_PLAN
    for marker, of_launcher in _OF_LAUNCHERS.items():
        if marker in environ:
            prefixes += of_launcher
    found = (name for name in environ if name.startswith(tuple(prefixes)) or name in names)
    return frozenset(found) - _STAYING


@contextmanager
def clean_environ(*, other_node: bool = False, overruled: Collection[str] = ()) -> Iterator[None]:
    """Hides the variables of the surrounding job or launcher from the processes that start inside it.

    Args:
        other_node: Whether the new process runs on another node, where the GPU numbers of this node are wrong.
        overruled: Further variables to hide.
    """
    names = leftovers(os.environ, other_node=other_node) | frozenset(overruled)
    hidden = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(hidden)
