"""What Slurm's variables say about the step of this process: its tasks, its first host, its job."""

from __future__ import annotations

import socket
from collections.abc import Mapping

from disttrain.environment.hostlist import expand_counts, expand_hostlist
from disttrain.environment.variables import Variables, parse_count
from disttrain.errors import UserError, shorten

_STEP_VARIABLES = (
    "SLURM_STEP_ID", "SLURM_STEPID", "SLURM_STEP_NUM_TASKS", "SLURM_STEP_TASKS_PER_NODE", "SLURM_STEP_NODELIST",
)  # fmt: skip


def in_slurm_step(environ: Mapping[str, str]) -> bool:
    """Whether srun started this process.

    The batch shell has SLURM_PROCID and SLURM_NTASKS too, but is one process, the first: only srun sets the variables
    of a step.
    """
    if any(name in environ for name in _STEP_VARIABLES):
        return True
    places = (environ.get(name) for name in ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID"))
    return any(place and parse_count(place) != 0 for place in places)


def tasks_per_node(read: Variables) -> int:
    """The number of tasks on each node of the step.

    Raises:
        UserError: It differs between the nodes, or no node has a task.
    """
    names = ("SLURM_STEP_TASKS_PER_NODE", "SLURM_TASKS_PER_NODE")
    tasks = expand_counts(read.text(*names), where=read.first(*names))
    if len(set(tasks)) > 1:
        raise UserError(
            f"the nodes of this step have different numbers of tasks: {shorten(', '.join(map(str, tasks)))}",
            hint="set --ntasks-per-node",
        )
    if not any(tasks):
        message = f"{read.first(*names)} is {shorten(repr(read.text(*names)))}: no node has a task"
        raise UserError(message, where="environment")
    return tasks[0]


def first_host(read: Variables, num_nodes: int) -> str:
    """The host of node 0. A step on one node needs no list: it is this host.

    Raises:
        UserError: The list is missing, cannot be read, or is empty.
    """
    names = ("SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST", "SLURM_NODELIST")
    name = read.first(*names)
    if name is None and num_nodes == 1:
        return socket.gethostname()
    hosts = expand_hostlist(read.text(*names), where=name)
    if not hosts:
        raise UserError(f"{name} is {shorten(repr(read.text(*names)))}: it names no host", where="environment")
    return hosts[0]


def slurm_job_id(read: Variables) -> str:
    """The id of the job; for a task of an array, ``<array job>_<task>``."""
    array_job = read.text("SLURM_ARRAY_JOB_ID", default="")
    if not array_job:
        return read.text("SLURM_JOB_ID")
    return f"{array_job}_{read.text('SLURM_ARRAY_TASK_ID')}"
