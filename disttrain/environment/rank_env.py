"""The place of a rank: rank, world size, master address and port, from the environment of its launcher."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from disttrain.environment.other_launchers import TORCH_VARIABLES, check_agreement, check_alone, check_torch_launch
from disttrain.environment.slurm_step import first_host, in_slurm_step, slurm_job_id, tasks_per_node
from disttrain.environment.variables import Variables, parse_count
from disttrain.errors import UserError, shorten

Launcher = Literal["torchrun", "slurm", "submitit-local", "single"]

# Below Linux's ephemeral range (32768 to 60999), in which any outgoing connection may take a port, and above Slurm's
# own ports 6817 to 6819. Sites set SrunPortRange above 60000.
PORT_RANGE = range(10240, 32768)
PORT_CANDIDATES = 32
MAX_THREADS = 65536  # a larger OMP_NUM_THREADS is a typo, which OpenMP ignores too

# A launch by hand with torchrun's variables; `_from_torchrun` names those that are missing.
_TORCH_LAUNCH = set(TORCH_VARIABLES) - {"MASTER_PORT"}

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
        may run inside an allocation. A Slurm step is the last. Without any of them the run has one rank, unless another
        launcher says that it has more.

        Args:
            environ: The environment, for example ``os.environ``.

        Raises:
            UserError: A variable is missing or has a wrong value, or the process is one of several and has no rank.

        Example:
            >>> RankEnv.from_environ({"SLURM_STEP_ID": "0", "SLURM_JOB_ID": "7", "SLURM_PROCID": "1",
            ...     "SLURM_NTASKS": "2", "SLURM_LOCALID": "0", "SLURM_NODEID": "1", "SLURM_NNODES": "2",
            ...     "SLURM_TASKS_PER_NODE": "1(x2)", "SLURM_STEP_NODELIST": "n[3-4]"}).master_addr
            'n3'
        """
        read = Variables(environ)
        if "TORCHELASTIC_RUN_ID" in environ:
            env = _from_torchrun(read)
        elif environ.keys() >= _TORCH_LAUNCH:
            env = _from_torchrun(read)
            check_torch_launch(environ, env.rank, env.world_size)
        elif environ.get("SUBMITIT_EXECUTOR") == "local":
            env = _from_submitit_local(read)
        elif in_slurm_step(environ):
            env = _from_slurm(read)
            check_agreement(environ, env.rank, env.world_size)
        else:
            check_alone(environ)
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
        nodes, per_node = map(parse_count, setup.replace("x", "_").partition("_")[::2])
        if nodes is None or per_node is None:
            hint = "write <nodes>_<GPUs per node>, for example 2_2"
            raise UserError(f"setup {shorten(repr(setup))} is not an allocation", hint=hint)
        if (nodes, per_node) != (self.num_nodes, self.local_world_size):
            raise UserError(
                f"setup {setup!r} says {nodes}x{per_node} (nodes x ranks per node), but the run has {self.allocation}",
                hint="correct --setup or the way the ranks are started",
            )

    def _checked(self) -> RankEnv:
        hint = f"the environment of {self.launcher} is inconsistent"
        if not (self.rank < self.world_size and self.local_rank < self.local_world_size):
            raise UserError(
                f"rank {self.rank} of {self.world_size}, local rank {self.local_rank} of {self.local_world_size}"
                " is out of range",
                hint=hint,
            )
        if self.num_nodes * self.local_world_size != self.world_size:
            message = f"{self.allocation} (nodes x ranks per node) is not the world size {self.world_size}"
            raise UserError(message, hint=hint)
        if self.node_rank >= self.num_nodes:
            raise UserError(f"node rank {self.node_rank} of {self.num_nodes} is out of range", hint=hint)
        return self


def port_candidates(token: str) -> tuple[int, ...]:
    """Ports for one run, outside the ephemeral range, in an order that follows from its token.

    A single port derived from a job id would collide with another job's port sooner or later. So the ranks agree on an
    order and take the first port in it that answers for their own job (disttrain.environment.port_agreement).

    Example:
        >>> port_candidates("7/0") == port_candidates("7/0") != port_candidates("8/0")
        True
    """
    digest = hashlib.shake_128(token.encode()).digest(4 * PORT_CANDIDATES)
    numbers = (int.from_bytes(digest[i : i + 4], "big") for i in range(0, len(digest), 4))
    return tuple(dict.fromkeys(PORT_RANGE[number % len(PORT_RANGE)] for number in numbers))


def _from_torchrun(read: Variables) -> RankEnv:
    world_size = read.number("WORLD_SIZE", least=1)
    rank, local_rank = read.number("RANK"), read.number("LOCAL_RANK")
    local_world_size = _local_world_size(read, rank, local_rank, world_size)
    return RankEnv(
        rank=rank,
        world_size=world_size,
        local_rank=local_rank,
        local_world_size=local_world_size,
        node_rank=read.number("GROUP_RANK", default=rank // local_world_size),
        num_nodes=read.number("GROUP_WORLD_SIZE", default=world_size // local_world_size, least=1),
        master_addr=read.text("MASTER_ADDR"),
        master_port=read.number("MASTER_PORT", least=1, most=65535),
        job_id=read.text("TORCHELASTIC_RUN_ID", default="none"),
        restart_count=read.number("TORCHELASTIC_RESTART_COUNT", default=0),
        launcher="torchrun",
    )


def _local_world_size(read: Variables, rank: int, local_rank: int, world_size: int) -> int:
    """The number of ranks on this host. torchrun gives it; a user's own launch may leave it out."""
    if read.first("LOCAL_WORLD_SIZE") or world_size == 1:
        return read.number("LOCAL_WORLD_SIZE", default=1, least=1)
    if read.first("SLURM_STEP_NUM_TASKS") and (
        (read.number("SLURM_PROCID"), read.number("SLURM_STEP_NUM_TASKS")) == (rank, world_size)
    ):
        return tasks_per_node(read)
    if rank != local_rank:  # so there is another host, and this one's share is not known
        return read.number("LOCAL_WORLD_SIZE")
    return world_size


def _from_submitit_local(read: Variables) -> RankEnv:
    world_size = read.number("SUBMITIT_LOCAL_NTASKS", least=1)
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


def _from_slurm(read: Variables) -> RankEnv:
    num_nodes = read.number("SLURM_STEP_NUM_NODES", "SLURM_NNODES", least=1)
    env = RankEnv(
        rank=read.number("SLURM_PROCID"),
        world_size=read.number("SLURM_STEP_NUM_TASKS", "SLURM_NTASKS", least=1),
        local_rank=read.number("SLURM_LOCALID"),
        local_world_size=tasks_per_node(read),
        node_rank=read.number("SLURM_NODEID"),
        num_nodes=num_nodes,
        # Not SLURM_LAUNCH_NODE_IPADDR: it is the host of srun, under salloc the login node.
        master_addr=first_host(read, num_nodes),
        job_id=slurm_job_id(read),
        step_id=read.text("SLURM_STEP_ID", "SLURM_STEPID"),
        restart_count=read.number("SLURM_RESTART_COUNT", default=0),
        launcher="slurm",
    )
    return dataclasses.replace(env, master_port=env.port_candidates()[0])


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
    threads = parse_count(omp_threads.partition(",")[0].strip())  # OpenMP accepts a list, one number for each level
    if threads is not None and threads <= MAX_THREADS and not set_by_torchrun:
        return max(1, threads)
    cpus_per_task = parse_count(environ.get("SLURM_CPUS_PER_TASK", ""))
    if env.launcher == "slurm" and cpus_per_task is not None:
        return max(1, min(cpus_per_task, cores))
    return max(1, cores // env.host_world_size)
