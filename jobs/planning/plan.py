"""The plan, as data: runs in groups that request the same, each one job array, and the batch script of each group."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import shlex
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from disttrain.config.command.command_config import SECTION, CommandConfig, is_command
from disttrain.config.train_config import LINK
from disttrain.errors import UserError
from jobs.planning.allocation import Allocation
from jobs.planning.cluster import Cluster
from jobs.planning.cluster_profile import ClusterProfile
from jobs.planning.expand import RunSpec
from jobs.planning.interpreter import compute_python, imports_elsewhere
from jobs.planning.sbatch_options import WAITING_OPTIONS, srun_arguments


@dataclass(frozen=True)
class JobGroup:
    """Runs of one allocation that are submitted as one job array. A group of one run is a plain job.

    All tasks of an array have the same parameters, so each allocation needs at least one array, and one more for runs
    that torchrun starts. It gets more arrays if one would be larger than the cluster accepts.
    """

    allocation: Allocation
    runs: tuple[RunSpec, ...]
    parameters: dict[str, Any]  # the parameters of submitit's SlurmExecutor; empty without Slurm
    profile: ClusterProfile | None  # what the jobs request; None without Slurm
    after: tuple[str, ...] = ()  # the smoke jobs that must succeed before these start

    @property
    def time_min(self) -> int | None:
        """The time limit of a run; None for no limit."""
        return self.profile.time_min if self.profile else None

    @property
    def tasks(self) -> int:
        """The number of processes that Slurm, or the local queue, starts for each run."""
        if self.runs[0].by_node:
            return self.allocation.nodes
        return self.allocation.world_size

    @property
    def requests_gpus(self) -> bool:
        """Whether Slurm is asked for GPUs (not with gpu_request: none). The local executor takes those it finds."""
        return not self.parameters or not {"gpus_per_node", "gres"}.isdisjoint(self.parameters)

    @property
    def gpu_hours_limit(self) -> float | None:
        """The GPU-hours if every run of the group reaches its time limit; None without a limit or a request of GPUs."""
        if self.time_min is None or not self.requests_gpus:
            return None
        return len(self.runs) * self.allocation.world_size * self.time_min / 60


@dataclass(frozen=True)
class Plan:
    """All runs of a sweep on one cluster."""

    sweep_name: str
    cluster: Cluster
    folder: Path  # the folder of the sweep on this cluster; submitit writes to its logs/
    groups: tuple[JobGroup, ...]

    @property
    def runs(self) -> tuple[RunSpec, ...]:
        return tuple(run for group in self.groups for run in group.runs)

    @property
    def log_folder(self) -> Path:
        return self.folder / "logs"

    def script(self, group: JobGroup) -> str:
        """The batch script of the group, exactly as sbatch receives it."""
        command = f"{compute_python(group.profile)} -u -m submitit.core._submit {shlex.quote(str(self.log_folder))}"
        array = {}
        if len(group.runs) > 1:
            array["map_count"] = len(group.runs)
        return batch_script(command, self.log_folder, {**group.parameters, **array})


def batch_script(command: str, log_folder: Path, parameters: Mapping[str, Any]) -> str:
    """The batch script that starts a command with srun.

    Args:
        command: The command, as text of a shell.
        log_folder: The folder of the logs.
        parameters: The parameters of submitit's SlurmExecutor.
    """
    # Imported here because submitit takes 0.2 s, which `sweep --help` does not need. The function is private to
    # submitit. A test compares this text with the submitted script, so a new release cannot change one only.
    from submitit.slurm.slurm import _make_sbatch_string

    text: str = _make_sbatch_string(command=command, folder=log_folder, **parameters)
    return text


def make_plan(sweep_name: str, runs: Sequence[RunSpec], cluster: Cluster, folder: Path) -> Plan:
    """Groups runs by what they request, in the order of their first runs, and splits groups at the array limit.

    Args:
        sweep_name: The name of the sweep and of its jobs.
        runs: The expanded runs.
        cluster: Where the runs go, with the sweep's changes.
        folder: The absolute path of the sweep's folder on this cluster.

    Raises:
        UserError: The logs cannot be in this folder, or a model of the user's own does not exist.
    """
    _check_folder(folder, on_slurm=cluster.kind == "slurm")
    for run in runs:
        profile = cluster.profile_for(run.allocation)
        if run.import_error and not (profile and imports_elsewhere(profile)):
            raise run.import_error
    alike: dict[tuple[Allocation, bool], list[RunSpec]] = {}
    for run in runs:
        alike.setdefault((run.allocation, run.by_node), []).append(run)
    groups: list[JobGroup] = []
    for (allocation, by_node), members in alike.items():
        profile = cluster.profile_for(allocation)
        if profile is None:
            groups.append(JobGroup(allocation, tuple(members), {}, None))
            continue
        parameters = slurm_parameters(sweep_name, allocation, profile, by_node=by_node)
        groups += split_group(JobGroup(allocation, tuple(members), parameters, profile), profile.max_array_size)
    return Plan(sweep_name, cluster, folder, tuple(groups))


def split_group(group: JobGroup, most_runs: int) -> list[JobGroup]:
    """The group as arrays of at most this many runs."""
    starts = range(0, len(group.runs), most_runs)
    return [dataclasses.replace(group, runs=group.runs[first : first + most_runs]) for first in starts]


def _check_folder(folder: Path, *, on_slurm: bool) -> None:
    """Checks that the names of log files keep the folder: sbatch and submitit replace %j, sbatch drops backslashes."""
    wrong = next((character for character in str(folder) if character == "%"), None)
    if on_slurm:
        unsafe = (character for character in str(folder) if character in "%\\" or not character.isprintable())
        wrong = next(unsafe, None)
    if wrong is not None:
        message = f"the folder {str(folder)!r} has the character {wrong!r}, which no name of a log file can have"
        raise UserError(message, hint="choose another folder, with --root or $SWEEP_ROOT")


def with_runs(plan: Plan, run_ids: Collection[str]) -> Plan:
    """The plan reduced to these runs, in the same groups."""
    groups = (
        dataclasses.replace(group, runs=tuple(run for run in group.runs if run.run_id in run_ids))
        for group in plan.groups
    )
    return dataclasses.replace(plan, groups=tuple(group for group in groups if group.runs))


def slurm_parameters(
    name: str, allocation: Allocation, cluster: ClusterProfile, *, by_node: bool = False
) -> dict[str, Any]:
    """The parameters of submitit's SlurmExecutor for one allocation.

    Each GPU gets one task: srun starts the ranks, not a launcher inside the job.

    Args:
        name: The name of the jobs.
        allocation: The allocation.
        cluster: What the jobs request.
        by_node: Whether each node gets one task in place of that, with the cores of all its GPUs.
    """
    gpus = allocation.gpus_per_node
    tasks, cpus = gpus, cluster.cpus_per_gpu
    if by_node:
        tasks, cpus = 1, cluster.cpus_per_gpu * gpus
    parameters: dict[str, Any] = {
        "job_name": name,
        "nodes": allocation.nodes,
        "ntasks_per_node": tasks,
        "cpus_per_task": cpus,
        "time": cluster.time_min,
        "signal_delay_s": cluster.resume_policy.warning_s,
        "wckey": None,  # else submitit sets its own wckey, which some sites refuse
        "srun_args": srun_arguments(cpus, cluster.srun),
        "setup": setup_lines(cluster),
        # submitit writes true as --option without a value. false has no option: it removes the value of the profile.
        "additional_parameters": {
            "requeue" if cluster.requeue == "slurm" else "no-requeue": True,
            **{key: value for key, value in cluster.sbatch.items() if value is not False},
        },
    }
    parameters |= _gpu_parameters(cluster, gpus)
    if cluster.memory_gb_per_gpu is not None:
        parameters["mem"] = f"{math.ceil(cluster.memory_gb_per_gpu * gpus * 1024)}M"  # --mem=0 would mean all memory
    if cluster.max_running is not None:
        parameters["array_parallelism"] = cluster.max_running
    else:
        parameters["array_parallelism"] = cluster.max_array_size  # submitit's own default is 256
    for key in ("partition", "account", "qos", "constraint"):
        parameters[key] = getattr(cluster, key)
    return {key: value for key, value in parameters.items() if value is not None or key == "wckey"}


def request_of(group: JobGroup) -> dict[str, Any]:
    """What is requested for each run of a group, to compare it with a later plan. Lines of `setup` are a digest only.

    The limit of tasks that run at the same time, the time of the warning and jobs to wait for are not part of it.
    """
    left_out = ("job_name", "wckey", "srun_args", "array_parallelism", "signal_delay_s")
    request = {name: value for name, value in group.parameters.items() if name not in left_out}
    if options := request.get("additional_parameters"):
        # A job that follows another one requests the same otherwise.
        request["additional_parameters"] = {key: value for key, value in options.items() if key not in WAITING_OPTIONS}
    if group.parameters:
        request["python"] = compute_python(group.profile)
    if group.profile and group.profile.srun:
        request["srun"] = group.profile.srun
    if "setup" in request:
        request["setup"] = hashlib.sha256("\n".join(request["setup"]).encode()).hexdigest()[:12]
    return request


def _gpu_parameters(cluster: ClusterProfile, gpus: int) -> dict[str, Any]:
    request: int | str = gpus
    if cluster.gpu_type:
        request = f"{cluster.gpu_type}:{gpus}"
    if cluster.gpu_request == "gpus-per-node":
        # Not --gpus-per-task: it hides the GPUs of a node from each other, and NVLink with them.
        return {"gpus_per_node": request}
    if cluster.gpu_request == "gres":
        return {"gres": f"gpu:{request}"}
    return {}


def setup_lines(cluster: ClusterProfile) -> list[str] | None:
    """The shell lines that the batch script runs before srun."""
    lines = list(cluster.setup)
    if cluster.network_interface:
        name = shlex.quote(cluster.network_interface)
        lines += [f"export NCCL_SOCKET_IFNAME={name} GLOO_SOCKET_IFNAME={name}"]
    return lines or None


def plan_json(plan: Plan) -> dict[str, Any]:
    """The plan as JSON, for `sweep plan --json` and plan.json."""
    return {
        "sweep": plan.sweep_name,
        "cluster": plan.cluster.name,
        "kind": plan.cluster.kind,
        "runs": [run_json(run) for run in plan.runs],
    }


def run_json(run: RunSpec) -> dict[str, Any]:
    """One run as JSON."""
    train, settings = dict(vars(run.config)), {}
    if isinstance(run.config, CommandConfig):
        train = {"command": run.config.command, **run.config.values}
        settings = {SECTION: run.config.settings()}
    return {
        "run_id": run.run_id,
        "allocation": str(run.allocation),
        "nodes": run.allocation.nodes,
        "gpus_per_node": run.allocation.gpus_per_node,
        "world_size": run.allocation.world_size,
        "point": dict(run.point),
        "asked": dict(run.asked),
        "train": train,
        **settings,
    }


def is_link(run: Mapping[str, Any]) -> bool:
    """Whether a run, as `run_json` returned it, only measures the link of its allocation."""
    return not is_command(run) and bool(run["train"]["model"] == LINK)


def has_bucket_times(run: Mapping[str, Any]) -> bool:
    """Whether a run, as `run_json` returned it, times its gradient buckets."""
    return not is_command(run) and bool(run["train"].get("detailed_timing")) and run["world_size"] > 1


def count_runs(number: int) -> str:
    """A number of runs as text.

    Example:
        >>> count_runs(1), count_runs(2)
        ('1 run', '2 runs')
    """
    if number == 1:
        return "1 run"
    return f"{number} runs"
