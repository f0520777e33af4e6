"""What every launcher says about this process: one of several processes must not take itself for the only one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from disttrain.environment.variables import Variables
from disttrain.errors import UserError

# What torchrun gives every rank. The ranks of any other launcher can be given the same.
TORCH_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class _Names:
    """The variables of one launcher. The later names count the processes of one host only."""

    rank: tuple[str, ...]
    size: tuple[str, ...] = ()


# Slurm is not among them: a batch shell has its rank and size, and is one process (`RankEnv.from_environ`).
_LAUNCHERS = (
    _Names(("RANK", "LOCAL_RANK"), ("WORLD_SIZE", "LOCAL_WORLD_SIZE")),
    _Names(("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_RANK"), ("OMPI_COMM_WORLD_SIZE",)),  # Open MPI
    _Names(("PMI_RANK",), ("PMI_SIZE",)),  # MPICH, Intel MPI
    _Names(("PMIX_RANK",)),  # PMIx gives no size
    _Names(("MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_LOCAL_RANK"), ("MV2_COMM_WORLD_SIZE",)),  # MVAPICH
    _Names(("MPI_RANKID", "MPI_LOCALRANKID"), ("MPI_NRANKS", "MPI_LOCALNRANKS")),  # Platform MPI, Intel MPI
    _Names(("MP_CHILD",), ("MP_PROCS",)),  # IBM's poe
    _Names(("JSM_NAMESPACE_RANK",), ("JSM_NAMESPACE_SIZE",)),  # IBM's jsrun
    _Names(("PALS_RANKID",)),  # Cray
    _Names(("ALPS_APP_PE",)),  # Cray, before PALS
    _Names(("FLUX_TASK_RANK",), ("FLUX_JOB_SIZE",)),
    _Names(("HOROVOD_RANK",), ("HOROVOD_SIZE",)),
)

# Every variable with which a launcher numbers or counts its processes.
PLACE_VARIABLES = frozenset(name for names in _LAUNCHERS for name in (*names.rank, *names.size))


def check_alone(environ: Mapping[str, str]) -> None:
    """Checks that no launcher says that this process is one of several.

    Each process of such a launch would otherwise be a run of its own, and all would write the same folder.

    Raises:
        UserError: A launcher says so, or it gives a rank and no size.
    """
    read = Variables(environ)
    for names in _LAUNCHERS:
        rank_name, size_name = read.first(*names.rank), read.first(*names.size)
        rank = size = None
        if rank_name:
            rank = read.number(rank_name)
        if size_name:
            size = read.number(size_name, least=1)
        if rank or (size or 1) > 1 or (rank_name and not size_name):
            said = ", ".join(f"{name}={environ[name]}" for name in (rank_name, size_name) if name)
            missing = [name for name in TORCH_VARIABLES if not environ.get(name)]
            verb = "is" if len(missing) == 1 else "are"
            raise UserError(
                f"this process is one of several ({said}), but {', '.join(missing)} {verb} not set",
                where="environment",
                hint="start the ranks with torchrun or srun, or set these variables for each rank",
            )


def check_agreement(environ: Mapping[str, str], rank: int, world_size: int) -> None:
    """Checks that no launcher inside the Slurm step gives this process another rank or size.

    mpirun inside a step starts several processes with the variables of one task of Slurm.

    Raises:
        UserError: A launcher says something else.
    """
    read = Variables(environ)
    for names in _LAUNCHERS:
        for name, value, slurm_name in (
            (read.first(names.rank[0]), rank, "SLURM_PROCID"),
            (read.first(*names.size[:1]), world_size, "the size of the Slurm step"),
        ):
            if name and read.number(name) != value:
                raise UserError(
                    f"{name} is {environ[name]}, but {slurm_name} is {value}",
                    where="environment",
                    hint=f"start the ranks with srun alone, or unset {name}",
                )
