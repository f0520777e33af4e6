"""The place of a rank: rank, world size, master address and port, from the environment of its launcher."""

from __future__ import annotations

import dataclasses
import hashlib
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from disttrain.environment.hostlist import expand_counts, expand_hostlist
from disttrain.errors import UserError

Launcher = Literal["torchrun", "slurm", "submitit-local", "single"]

# Below Linux's ephemeral range (32768 to 60999), in which any outgoing connection may take a port, and above Slurm's
# own ports 6817 to 6819. Sites set SrunPortRange above 60000.
PORT_RANGE = range(10240, 32768)
PORT_CANDIDATES = 32

# Lists of GPUs: each of them shows that GPUs were allocated to this rank, even if torch cannot see them.
_GPU_LISTS = ("SLURM_STEP_GPUS", "SLURM_JOB_GPUS", "CUDA_VISIBLE_DEVICES")
# The values that mean no GPU: set by the user to hide them ("" or "-1"), or by Slurm in a job without GPUs.
_NO_GPU = ("", "-1", "NoDevFiles")


@dataclass(frozen=True, kw_only=True)
class RankEnv:
    """One rank's place in the run, independent of the launcher.

    `rank` selects the data and the rank that writes the summary, `host_rank` selects the device.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1
    node_rank: int = 0
    num_nodes: int = 1
    master_addr: str = "127.0.0.1"
    master_port: int = PORT_RANGE.start  # the first candidate; with torchrun the only one
    job_id: str | None = None
    step_id: str = "0"
    restart_count: int = 0
    launcher: Launcher = "single"
    gpus_allocated: bool = False
    folded: bool = False  # all logical nodes are on this one host

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> RankEnv:
        """The place of a process, from its environment.

        torchrun is checked first, because it may run inside a Slurm job. submitit's local executor is next, because it
        may run inside an allocation. A Slurm step is the last. Without any of them the run has one rank.

        Args:
            environ: The environment, for example ``os.environ``.

        Raises:
            UserError: A variable is missing or has a wrong value.

        Example:
            >>> RankEnv.from_environ({"SLURM_STEP_ID": "0", "SLURM_JOB_ID": "7", "SLURM_PROCID": "1",
            ...     "SLURM_NTASKS": "2", "SLURM_LOCALID": "0", "SLURM_NODEID": "1", "SLURM_NNODES": "2",
            ...     "SLURM_TASKS_PER_NODE": "1(x2)", "SLURM_STEP_NODELIST": "n[3-4]"}).master_addr
            'n3'
        """
        read = _Reader(environ)
        if "TORCHELASTIC_RUN_ID" in environ or {"RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR"} <= environ.keys():
            env = _from_torchrun(read)
        elif environ.get("SUBMITIT_EXECUTOR") == "local":
            env = _from_submitit_local(read)
        elif "SLURM_PROCID" in environ and "SLURM_STEP_ID" in environ:
            # The batch shell has SLURM_PROCID and SLURM_NTASKS too, but is one process; only srun sets SLURM_STEP_ID.
            env = _from_slurm(read)
        else:
            env = cls(job_id=environ.get("SLURM_JOB_ID"))
        return dataclasses.replace(env, gpus_allocated=_gpus_allocated(environ))._checked()

    @property
    def host_rank(self) -> int:
        """This rank's index among the ranks of the run on this host."""
        if self.folded:
            return self.rank
        return self.local_rank

    @property
    def host_world_size(self) -> int:
        """The number of ranks of the run on this host."""
        if self.folded:
            return self.world_size
        return self.local_world_size

    @property
    def allocation(self) -> str:
        """The allocation as ``<nodes>x<ranks per node>``, for example ``2x2``."""
        return f"{self.num_nodes}x{self.local_world_size}"

    def fold(self, nodes: int) -> RankEnv:
        """The same rank, in a run whose ranks are divided into logical nodes on this one host.

        Args:
            nodes: The number of logical nodes; divides the world size.
        """
        per_node = self.world_size // nodes
        return dataclasses.replace(
            self,
            num_nodes=nodes,
            node_rank=self.rank // per_node,
            local_rank=self.rank % per_node,
            local_world_size=per_node,
            folded=nodes > 1,
        )

    def port_candidates(self) -> tuple[int, ...]:
        """The ports that the ranks of this run try, in order; each job has a different order.

        With torchrun this is only the port that torchrun chose.
        """
        if self.launcher == "torchrun":
            return (self.master_port,)
        return port_candidates(self.token)

    @property
    def token(self) -> str:
        """The text that identifies this attempt among all jobs on the same host."""
        return f"{self.job_id}.{self.step_id}/{self.restart_count}"

    def check_setup(self, setup: str) -> None:
        """Checks ``--setup`` (``2_2`` or ``2x2``) against the actual allocation of the run.

        Raises:
            UserError: The text is not an allocation, or not the allocation of the run.
        """
        nodes, _, per_node = setup.replace("x", "_").partition("_")
        if not (nodes.isdecimal() and per_node.isdecimal()):
            raise UserError(
                f"setup {setup!r} is not an allocation", hint="write <nodes>_<GPUs per node>, for example 2_2"
            )
        if f"{int(nodes)}x{int(per_node)}" != self.allocation:
            raise UserError(
                f"setup {setup!r} says {int(nodes)}x{int(per_node)} (nodes x ranks per node), but the run has"
                f" {self.allocation}",
                hint="correct --setup or the way the ranks are started",
            )

    def _checked(self) -> RankEnv:
        if not (0 <= self.rank < self.world_size and 0 <= self.local_rank < self.local_world_size):
            raise UserError(
                f"rank {self.rank} of {self.world_size}, local rank {self.local_rank} of {self.local_world_size}"
                " is out of range",
                hint=f"the environment of {self.launcher} is inconsistent",
            )
        return self


def port_candidates(token: str) -> tuple[int, ...]:
    """Ports for one run, outside the ephemeral range, in an order that follows from its token.

    A single port derived from a job id would collide with another job's port sooner or later. So the ranks agree on an
    order and take the first port in it that answers for their own job (disttrain.distributed.rendezvous).

    Example:
        >>> port_candidates("7/0") == port_candidates("7/0") != port_candidates("8/0")
        True
    """
    digest = hashlib.shake_128(token.encode()).digest(4 * PORT_CANDIDATES)
    numbers = (int.from_bytes(digest[i : i + 4], "big") for i in range(0, len(digest), 4))
    return tuple(dict.fromkeys(PORT_RANGE[number % len(PORT_RANGE)] for number in numbers))


class _Reader:
    """Reads a variable by name, or the first of several names that is set."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ

    def text(self, *names: str, default: str | int | None = None) -> str:
        for name in names:
            if self._environ.get(name):
                return self._environ[name]
        if default is not None:
            return str(default)
        raise UserError(f"{names[0]} is not set", where="environment", hint="start the rank with its launcher")

    def number(self, *names: str, default: int | None = None) -> int:
        value = self.text(*names, default=default)
        if not value.isdecimal():
            raise UserError(f"{names[0]} is {value!r}, not a number", where="environment")
        return int(value)


def _from_torchrun(read: _Reader) -> RankEnv:
    world_size = read.number("WORLD_SIZE")
    local_world_size = read.number("LOCAL_WORLD_SIZE", default=world_size)
    rank = read.number("RANK")
    return RankEnv(
        rank=rank,
        world_size=world_size,
        local_rank=read.number("LOCAL_RANK"),
        local_world_size=local_world_size,
        node_rank=read.number("GROUP_RANK", default=rank // local_world_size),
        num_nodes=read.number("GROUP_WORLD_SIZE", default=world_size // local_world_size),
        master_addr=read.text("MASTER_ADDR"),
        master_port=read.number("MASTER_PORT"),
        job_id=read.text("TORCHELASTIC_RUN_ID", default="none"),
        restart_count=read.number("TORCHELASTIC_RESTART_COUNT", default=0),
        launcher="torchrun",
    )


def _from_submitit_local(read: _Reader) -> RankEnv:
    world_size = read.number("SUBMITIT_LOCAL_NTASKS")
    rank = read.number("SUBMITIT_LOCAL_GLOBALID")
    env = RankEnv(
        rank=rank,
        world_size=world_size,
        local_rank=rank,
        local_world_size=world_size,
        job_id=read.text("SUBMITIT_LOCAL_JOB_ID"),
        launcher="submitit-local",
    )
    return dataclasses.replace(env, master_port=env.port_candidates()[0])


def _from_slurm(read: _Reader) -> RankEnv:
    nodelist = read.text("SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST", "SLURM_NODELIST", default="")
    node_rank = read.number("SLURM_NODEID")
    tasks = expand_counts(read.text("SLURM_STEP_TASKS_PER_NODE", "SLURM_TASKS_PER_NODE"))
    if len(set(tasks)) > 1:
        raise UserError(
            f"the nodes of this step have different numbers of tasks: {', '.join(map(str, tasks))}",
            hint="set --ntasks-per-node",
        )
    hosts = expand_hostlist(nodelist)
    env = RankEnv(
        rank=read.number("SLURM_PROCID"),
        world_size=read.number("SLURM_STEP_NUM_TASKS", "SLURM_NTASKS"),
        local_rank=read.number("SLURM_LOCALID"),
        local_world_size=tasks[0],
        node_rank=node_rank,
        num_nodes=read.number("SLURM_STEP_NUM_NODES", "SLURM_NNODES"),
        # Not SLURM_LAUNCH_NODE_IPADDR: it is the host of srun, under salloc the login node.
        master_addr=hosts[0] if hosts else socket.gethostname(),
        job_id=_slurm_job_id(read),
        step_id=read.text("SLURM_STEP_ID"),
        restart_count=read.number("SLURM_RESTART_COUNT", default=0),
        launcher="slurm",
    )
    return dataclasses.replace(env, master_port=env.port_candidates()[0])


def _slurm_job_id(read: _Reader) -> str:
    array_job = read.text("SLURM_ARRAY_JOB_ID", default="")
    if not array_job:
        return read.text("SLURM_JOB_ID")
    return f"{array_job}_{read.text('SLURM_ARRAY_TASK_ID', default='')}"


def _gpus_allocated(environ: Mapping[str, str]) -> bool:
    return any(environ.get(name, "") not in _NO_GPU for name in _GPU_LISTS)


def choose_threads(env: RankEnv, environ: Mapping[str, str], cores: int) -> int:
    """The number of threads that torch computes with on a rank: its share of the cores of its host.

    Args:
        env: This rank's place.
        environ: The environment: OMP_NUM_THREADS is used as it is, SLURM_CPUS_PER_TASK is the share that Slurm gave.
        cores: The number of cores that this process may run on.

    Example:
        >>> choose_threads(RankEnv(world_size=4, local_world_size=4), {}, 16)
        4
    """
    omp_threads = environ.get("OMP_NUM_THREADS", "")
    # torchrun sets 1 for all ranks if the user has set nothing, which would leave most cores idle.
    set_by_torchrun = env.launcher == "torchrun" and env.local_world_size > 1 and omp_threads == "1"
    if omp_threads.isdecimal() and not set_by_torchrun:
        return max(1, int(omp_threads))
    cpus_per_task = environ.get("SLURM_CPUS_PER_TASK", "")
    if env.launcher == "slurm" and cpus_per_task.isdecimal():
        return max(1, min(int(cpus_per_task), cores))
    return max(1, cores // env.host_world_size)
