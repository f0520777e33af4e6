"""Who this rank is: rank, world size, master address and port, from torchrun's, Slurm's or submitit's environment."""

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

# Below Linux's ephemeral range (32768 to 60999), where any outgoing connection may take a port, and above Slurm's
# own 6817 to 6819. Sites put SrunPortRange above 60000.
PORT_RANGE = range(10240, 32768)
PORT_CANDIDATES = 32

# Lists of GPUs: any of them says that GPUs were handed to this rank, whatever torch can see of them.
_GPU_LISTS = ("SLURM_STEP_GPUS", "SLURM_JOB_GPUS", "CUDA_VISIBLE_DEVICES")
# What such a list holds where there is none: hidden by the user ("" or "-1"), or by Slurm in a job without GPUs.
_NO_GPU = ("", "-1", "NoDevFiles")


@dataclass(frozen=True, kw_only=True)
class RankEnv:
    """One rank's place in the run, whatever started it.

    `rank` picks data and the writer, `host_rank` picks a device.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1
    node_rank: int = 0
    num_nodes: int = 1
    master_addr: str = "127.0.0.1"
    master_port: int = PORT_RANGE.start  # the first to try; torchrun's own is the one to use
    job_id: str | None = None
    step_id: str = "0"
    restart_count: int = 0
    launcher: Launcher = "single"
    gpus_allocated: bool = False
    folded: bool = False  # every logical node lies on this one host

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> RankEnv:
        """The rank of a process, from its environment.

        torchrun is looked for first, since it may run inside a Slurm job; submitit's local executor next, since it may
        run inside an allocation; then a Slurm step; a process that none of them started is a run of one rank.

        Args:
            environ: The environment, as ``os.environ``.

        Raises:
            UserError: A variable is missing, or does not hold what it should.

        Example:
            >>> RankEnv.from_environ({"SLURM_STEP_ID": "0", "SLURM_JOB_ID": "7", "SLURM_PROCID": "1",
            ...     "SLURM_NTASKS": "2", "SLURM_LOCALID": "0", "SLURM_NODEID": "1", "SLURM_NNODES": "2",
            ...     "SLURM_TASKS_PER_NODE": "1(x2)", "SLURM_STEP_NODELIST": "n[3-4]"}).master_addr
            'n3'
        """
        read = _Reader(environ)
        if "TORCHELASTIC_RUN_ID" in environ or {"RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR"} <= environ.keys():
            found = _from_torchrun(read)
        elif environ.get("SUBMITIT_EXECUTOR") == "local":
            found = _from_submitit_local(read)
        elif "SLURM_PROCID" in environ and "SLURM_STEP_ID" in environ:
            # The batch shell has SLURM_PROCID and SLURM_NTASKS too, but is one process; only srun sets SLURM_STEP_ID.
            found = _from_slurm(read)
        else:
            found = cls(job_id=environ.get("SLURM_JOB_ID"))
        return dataclasses.replace(found, gpus_allocated=_gpus_allocated(environ))._checked()

    @property
    def host_rank(self) -> int:
        """This rank's index among the ranks of the run on this host."""
        return self.rank if self.folded else self.local_rank

    @property
    def host_world_size(self) -> int:
        """How many ranks of the run this host has."""
        return self.world_size if self.folded else self.local_world_size

    @property
    def allocation(self) -> str:
        """The allocation as ``<nodes>x<ranks per node>``, for example ``2x2``."""
        return f"{self.num_nodes}x{self.local_world_size}"

    def fold(self, nodes: int) -> RankEnv:
        """The same ranks, told that they stand for `nodes` logical nodes on this one host.

        Args:
            nodes: Logical nodes; divides the world size.
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
        """The ports that the ranks of this run try, in order; another job has another order.

        torchrun's own port is the only one where torchrun started the ranks.
        """
        if self.launcher == "torchrun":
            return (self.master_port,)
        return port_candidates(self.token)

    @property
    def token(self) -> str:
        """What tells the ranks of this attempt from those of every other job on the same host."""
        return f"{self.job_id}.{self.step_id}/{self.restart_count}"

    def check_setup(self, setup: str) -> None:
        """Checks ``--setup`` (``2_2`` or ``2x2``) against the allocation that the run really has.

        Raises:
            UserError: It is not an allocation, or not that of the run.
        """
        nodes, _, per_node = setup.replace("x", "_").partition("_")
        if not (nodes.isdecimal() and per_node.isdecimal()):
            raise UserError(
                f"setup {setup!r} is not an allocation", hint="write <nodes>_<GPUs per node>, as 2_2 or 2x2"
            )
        if f"{int(nodes)}x{int(per_node)}" != self.allocation:
            raise UserError(
                f"setup {setup!r} says {int(nodes)}x{int(per_node)} (nodes x ranks per node), but the run has"
                f" {self.allocation}",
                hint="correct --setup, or the way in which the ranks are started",
            )

    def _checked(self) -> RankEnv:
        if not (0 <= self.rank < self.world_size and 0 <= self.local_rank < self.local_world_size):
            raise UserError(
                f"rank {self.rank} of {self.world_size}, local rank {self.local_rank} of {self.local_world_size}:"
                " not a place in a run",
                hint=f"the environment of {self.launcher} is inconsistent",
            )
        return self


def port_candidates(token: str) -> tuple[int, ...]:
    """Ports for one run, outside the ephemeral range, in an order that its token decides.

    A single port derived from a job id must meet another job's sooner or later, so the ranks agree on an order and
    take the first port in it that answers for their own job (disttrain.distributed.rendezvous).

    Example:
        >>> port_candidates("7/0") == port_candidates("7/0") != port_candidates("8/0")
        True
    """
    digest = hashlib.shake_128(token.encode()).digest(4 * PORT_CANDIDATES)
    numbers = (int.from_bytes(digest[i : i + 4], "big") for i in range(0, len(digest), 4))
    return tuple(dict.fromkeys(PORT_RANGE[number % len(PORT_RANGE)] for number in numbers))


class _Reader:
    """Reads variables by name, the first of several that is there."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ

    def text(self, *names: str, default: str | None = None) -> str:
        for name in names:
            if self._environ.get(name):
                return self._environ[name]
        if default is not None:
            return default
        raise UserError(f"{names[0]} is not set", where="environment", hint="was the rank started by its launcher?")

    def number(self, *names: str, default: int | None = None) -> int:
        value = self.text(*names, default=None if default is None else str(default))
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
    found = RankEnv(
        rank=rank,
        world_size=world_size,
        local_rank=rank,
        local_world_size=world_size,
        job_id=read.text("SUBMITIT_LOCAL_JOB_ID"),
        launcher="submitit-local",
    )
    return dataclasses.replace(found, master_port=found.port_candidates()[0])


def _from_slurm(read: _Reader) -> RankEnv:
    nodelist = read.text("SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST", "SLURM_NODELIST", default="")
    node_rank = read.number("SLURM_NODEID")
    tasks = expand_counts(read.text("SLURM_STEP_TASKS_PER_NODE", "SLURM_TASKS_PER_NODE"))
    if len(set(tasks)) > 1:
        raise UserError(
            f"the nodes of this step have {', '.join(map(str, tasks))} tasks", hint="ask for --ntasks-per-node"
        )
    array_job, array_task = read.text("SLURM_ARRAY_JOB_ID", default=""), read.text("SLURM_ARRAY_TASK_ID", default="")
    found = RankEnv(
        rank=read.number("SLURM_PROCID"),
        world_size=read.number("SLURM_STEP_NUM_TASKS", "SLURM_NTASKS"),
        local_rank=read.number("SLURM_LOCALID"),
        local_world_size=tasks[0],
        node_rank=node_rank,
        num_nodes=read.number("SLURM_STEP_NUM_NODES", "SLURM_NNODES"),
        # SLURM_LAUNCH_NODE_IPADDR is where srun ran, the login node under salloc: the first host of the step it is.
        master_addr=expand_hostlist(nodelist)[0] if nodelist else socket.gethostname(),
        job_id=f"{array_job}_{array_task}" if array_job else read.text("SLURM_JOB_ID"),
        step_id=read.text("SLURM_STEP_ID"),
        restart_count=read.number("SLURM_RESTART_COUNT", default=0),
        launcher="slurm",
    )
    return dataclasses.replace(found, master_port=found.port_candidates()[0])


def _gpus_allocated(environ: Mapping[str, str]) -> bool:
    return any(environ.get(name, "") not in _NO_GPU for name in _GPU_LISTS)


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
