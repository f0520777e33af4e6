"""What will be sent, as data: runs grouped by allocation, each group one job array, and the sbatch text of each."""

from __future__ import annotations

import dataclasses
import math
import shlex
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs.planning.allocation import Allocation
from jobs.planning.cluster_profile import ClusterProfile, compute_python
from jobs.planning.expand import RunSpec

# srun ends the step this long after its first rank has ended well; the others are done at almost the same time.
_WAIT_FOR_OTHER_RANKS_S = 120


@dataclass(frozen=True)
class JobGroup:
    """Runs of one allocation that are sent as one job array; a group of one is a plain job.

    An array has one set of parameters, hence at least one array for each shape; more where the array would be larger
    than the cluster takes.
    """

    allocation: Allocation
    runs: tuple[RunSpec, ...]
    parameters: dict[str, Any]  # of submitit's SlurmExecutor; empty without Slurm
    time_min: int | None  # None: no limit

    @property
    def gpu_hours_limit(self) -> float | None:
        """GPU-hours if every run of the group takes all of its time."""
        if self.time_min is None:
            return None
        return len(self.runs) * self.allocation.world_size * self.time_min / 60


@dataclass(frozen=True)
class Plan:
    """A whole sweep on one cluster."""

    sweep_name: str
    cluster_name: str
    folder: Path  # of the sweep on this cluster; logs/ in it is submitit's
    cluster: ClusterProfile | None  # None: local and debug
    groups: tuple[JobGroup, ...]

    @property
    def runs(self) -> tuple[RunSpec, ...]:
        return tuple(run for group in self.groups for run in group.runs)

    @property
    def log_folder(self) -> Path:
        return self.folder / "logs"

    def script(self, group: JobGroup) -> str:
        """The text of the group's batch script, as sbatch will get it."""
        # Not at import: submitit takes 0.2 s, which `sweep --help` need not pay. The function is private to submitit;
        # a test holds this text against what is really sent, so that a new release cannot part them unseen.
        from submitit.slurm.slurm import _make_sbatch_string

        command = f"{compute_python(self.cluster)} -u -m submitit.core._submit"
        array = {"map_count": len(group.runs)} if len(group.runs) > 1 else {}
        text: str = _make_sbatch_string(
            command=f"{command} {shlex.quote(str(self.log_folder))}",
            folder=self.log_folder,
            **group.parameters,
            **array,
        )
        return text


def make_plan(
    sweep_name: str, runs: Sequence[RunSpec], cluster_name: str, cluster: ClusterProfile | None, folder: Path
) -> Plan:
    """Groups runs by allocation, in the order of their first runs, and cuts groups at the array limit.

    Args:
        sweep_name: Also the jobs' name.
        runs: As expanded.
        cluster_name: `local`, `debug` or the profile's name.
        cluster: The profile with the sweep's overrides; None for `local` and `debug`.
        folder: The sweep's folder on this cluster, absolute.
    """
    by_allocation: dict[Allocation, list[RunSpec]] = {}
    for run in runs:
        by_allocation.setdefault(run.allocation, []).append(run)
    groups = []
    for allocation, members in by_allocation.items():
        parameters = slurm_parameters(sweep_name, allocation, cluster) if cluster else {}
        size = cluster.max_array_size if cluster else len(members)
        for first in range(0, len(members), size):
            chunk = tuple(members[first : first + size])
            groups.append(JobGroup(allocation, chunk, parameters, cluster.time_min if cluster else None))
    return Plan(sweep_name, cluster_name, folder, cluster, tuple(groups))


def with_runs(plan: Plan, run_ids: Collection[str]) -> Plan:
    """The plan with only these runs, in the same groups."""
    groups = (
        dataclasses.replace(group, runs=tuple(run for run in group.runs if run.run_id in run_ids))
        for group in plan.groups
    )
    return dataclasses.replace(plan, groups=tuple(group for group in groups if group.runs))


def slurm_parameters(name: str, allocation: Allocation, cluster: ClusterProfile) -> dict[str, Any]:
    """The parameters of submitit's SlurmExecutor for one allocation.

    One task for each GPU: the ranks are started by srun, not by a launcher inside the job.
    """
    gpus = allocation.gpus_per_node
    parameters: dict[str, Any] = {
        "job_name": name,
        "nodes": allocation.nodes,
        "ntasks_per_node": gpus,
        "cpus_per_task": cluster.cpus_per_gpu,
        "time": cluster.time_min,
        "wckey": None,  # submitit would send one of its own, which some sites refuse
        # Slurm 22.05 and 23.02 do not hand --cpus-per-task on to srun: each rank would get one core.
        "srun_args": [
            "-c",
            str(cluster.cpus_per_gpu),
            "--kill-on-bad-exit=1",
            f"--wait={_WAIT_FOR_OTHER_RANKS_S}",
        ],
        "setup": setup_lines(cluster),
        # submitit writes true as a bare --option; false has no such form, and takes back what the profile says.
        "additional_parameters": {key: value for key, value in cluster.sbatch.items() if value is not False} or None,
    }
    request = f"{cluster.gpu_type}:{gpus}" if cluster.gpu_type else gpus
    if cluster.gpu_request == "gpus-per-node":
        # Not --gpus-per-task: it hides the GPUs of a node from each other, and with them NVLink.
        parameters["gpus_per_node"] = request
    elif cluster.gpu_request == "gres":
        parameters["gres"] = f"gpu:{request}"
    if cluster.memory_gb_per_gpu is not None:
        parameters["mem"] = f"{math.ceil(cluster.memory_gb_per_gpu * gpus * 1024)}M"  # 0 is all
    if cluster.max_running is not None:
        parameters["array_parallelism"] = cluster.max_running
    else:
        parameters["array_parallelism"] = cluster.max_array_size  # submitit's own default is 256
    for key in ("partition", "account", "qos", "constraint"):
        parameters[key] = getattr(cluster, key)
    return {key: value for key, value in parameters.items() if value is not None or key == "wckey"}


def setup_lines(cluster: ClusterProfile) -> list[str] | None:
    """Shell lines that the batch script runs before srun."""
    lines = list(cluster.setup)
    if cluster.network_interface:
        name = shlex.quote(cluster.network_interface)
        lines += [f"export NCCL_SOCKET_IFNAME={name} GLOO_SOCKET_IFNAME={name}"]
    return lines or None


def plan_json(plan: Plan) -> dict[str, Any]:
    """The plan as JSON: what `sweep plan --json` prints, and plan.json keeps."""
    return {
        "sweep": plan.sweep_name,
        "cluster": plan.cluster_name,
        "runs": [run_json(run) for run in plan.runs],
    }


def run_json(run: RunSpec) -> dict[str, Any]:
    """One run as JSON."""
    return {
        "run_id": run.run_id,
        "allocation": str(run.allocation),
        "nodes": run.allocation.nodes,
        "gpus_per_node": run.allocation.gpus_per_node,
        "world_size": run.allocation.world_size,
        "point": dict(run.point),
        "train": dataclasses.asdict(run.config),
    }


def count_runs(number: int) -> str:
    """A number of runs in words.

    Example:
        >>> count_runs(1), count_runs(2)
        ('1 run', '2 runs')
    """
    return "1 run" if number == 1 else f"{number} runs"
