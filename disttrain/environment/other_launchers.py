"""What every launcher says about this process: one of several processes must not take itself for the only one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from disttrain.environment.slurm_step import in_slurm_step
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

# What srun gives a task. It is used only inside a step.
_SLURM_STEP = _Names(("SLURM_PROCID",), ("SLURM_STEP_NUM_TASKS",))

# Every variable with which a launcher numbers or counts its processes.
PLACE_VARIABLES = frozenset(name for names in _LAUNCHERS for name in (*names.rank, *names.size))


def check_alone(environ: Mapping[str, str]) -> None:
    """Checks that no launcher says that this process is one of several.

    Each process of such a launch would otherwise be a run of its own, and all would write the same folder.

    Raises:
        UserError: A launcher says so, or one gives a rank, and none a size.
    """
    read = Variables(environ)
    places = [
        (names, read.optional_number(*names.rank), read.optional_number(*names.size, least=1)) for names in _LAUNCHERS
    ]
    several = [names for names, rank, size in places if rank or (size or 1) > 1]
    if all(size is None for _, _, size in places):
        several += [names for names, rank, _ in places if rank is not None]
    if several:
        missing = [name for name in TORCH_VARIABLES if not environ.get(name)]
        verb = "is" if len(missing) == 1 else "are"
        raise UserError(
            f"this process is one of several ({_place(environ, several[0])}), but {', '.join(missing)} {verb} not set",
            where="environment",
            hint="start the ranks with torchrun or srun, or set these variables for each rank",
        )


def check_torch_launch(environ: Mapping[str, str], rank: int, world_size: int) -> None:
    """Checks that torchrun's variables, set without torchrun, are meant for this process.

    Exports that are left in a shell give each process of mpirun or srun the same place, and all would write one folder.
    One process of another launcher may start several ranks, so a smaller size than the world size is no contradiction.

    Raises:
        UserError: Another launcher gives a larger size, or another rank of the same size.
    """
    read = Variables(environ)
    launchers = list(_LAUNCHERS)
    if in_slurm_step(environ):
        launchers.append(_SLURM_STEP)
    for names in launchers:
        other_rank = read.optional_number(names.rank[0])
        other_size = read.optional_number(*names.size[:1]) or 1
        moved = other_size == world_size and other_rank not in (None, rank)
        if other_size > world_size or (other_rank or 0) >= world_size or moved:
            raise UserError(
                f"this process is one of several ({_place(environ, names)}),"
                f" but RANK is {rank} and WORLD_SIZE is {world_size}",
                where="environment",
                hint="unset RANK and WORLD_SIZE, or set them for each process",
            )


def _place(environ: Mapping[str, str], names: _Names) -> str:
    """The rank and the size that a launcher gives, for a message."""
    read = Variables(environ)
    found = filter(None, (read.first(*names.rank), read.first(*names.size)))
    return ", ".join(f"{name}={environ[name]}" for name in found)


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
