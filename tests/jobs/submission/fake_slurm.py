"""A Slurm that accepts submissions like sbatch, and reports states like sacct and squeue."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import jobs.schedulers.slurm_scheduler
import jobs.slurm.interrupted
import jobs.slurm.script_jobs
import jobs.slurm.submit
from disttrain.errors import UserError
from jobs.planning.cluster import Cluster
from jobs.planning.cluster_profile import ClusterProfile
from jobs.planning.expand import expand
from jobs.planning.plan import JobGroup, Plan, make_plan
from jobs.planning.sweep_file import parse_sweep
from jobs.planning.yaml_file import parse_yaml
from jobs.slurm.attempts import AccountingRow
from jobs.slurm.squeue import ClusterConfig, QueuedJob
from jobs.slurm.states import State
from jobs.storage.sweep_folder import SweepFolder

SWEEP = "name: s\nallocations: [1x1, 2x1]\nbase: {model: bert, max_steps: 3}\nseeds: [0, 1]\n"

LOADED = parse_sweep(parse_yaml(SWEEP, "s.yaml"), "/sweeps")


def plan_of(root: Path, cluster: str = "site", text: str = SWEEP) -> Plan:
    runs = expand(parse_sweep(parse_yaml(text, "s.yaml"), "/nowhere"))
    where = Cluster(cluster, "slurm", ClusterProfile.model_validate({}))
    if cluster == "local":
        where = Cluster(cluster, "local")
    elif cluster == "debug":
        where = Cluster(cluster, "debug")
    return make_plan("s", runs, where, root / "s" / cluster)


class Slurm:
    """Accepts submissions like sbatch, and reports states like sacct."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.is_shown = True  # whether squeue lists the jobs
        self.states: dict[str, State] = {}
        self.submitted: list[list[str]] = []  # the run ids of each group
        self.groups: list[JobGroup] = []  # the same groups
        self.refused = ""
        self.error: BaseException | None = None  # what sbatch raises after it has accepted a job
        self.tokens: dict[str, str] = {}  # by job id
        self.held: set[str] = set()
        self.run_dirs: dict[str, Path] = {}  # by job id
        self.release_error: BaseException | None = None
        self.limit = 10**6  # the jobs that may wait or run at the same time
        self.max_array_size: int | None = None
        self.cancelled: list[tuple[list[str], bool]] = []  # the calls of scancel, with --state=PENDING or without
        monkeypatch.setattr(jobs.slurm.submit, "_sbatch", self.sbatch)
        monkeypatch.setattr(jobs.slurm.script_jobs, "query_squeue", self.squeue)
        for module in (jobs.slurm.submit, jobs.slurm.interrupted):
            monkeypatch.setattr(module, "query_squeue", self.squeue)
            monkeypatch.setattr(module, "release", self.release)
            monkeypatch.setattr(module, "cancel", self.cancel)
            monkeypatch.setattr(module, "cluster_name", lambda **_: "site", raising=False)
            monkeypatch.setattr(module, "cluster_config", self.config, raising=False)
        monkeypatch.setattr(jobs.schedulers.slurm_scheduler, "query_sacct", self.sacct)
        monkeypatch.setattr(jobs.schedulers.slurm_scheduler, "query_squeue", self.squeue)
        monkeypatch.setattr(jobs.schedulers.slurm_scheduler, "cancel", self.cancel)
        monkeypatch.setattr(jobs.schedulers.slurm_scheduler, "cluster_name", lambda **_: "site")
        monkeypatch.setattr("shutil.which", lambda program: f"/usr/bin/{program}")

    def config(self, **_: Any) -> ClusterConfig:
        return ClusterConfig("site", self.max_array_size)

    def sbatch(self, plan: Plan, group: JobGroup, token: str) -> list[str]:
        if str(group.allocation) == self.refused:
            raise UserError("sbatch refused it")
        queued = sum(not state.is_finished for state in self.states.values())
        if queued + len(group.runs) > self.limit:
            raise UserError("sbatch refused it: AssocMaxSubmitJobLimit; Batch job submission failed: Job violates ...")
        self.submitted.append([run.run_id for run in group.runs])
        self.groups.append(group)
        job_ids = [f"{len(self.submitted)}_{index}" for index in range(len(group.runs))]
        self.states.update(dict.fromkeys(job_ids, State.PENDING))
        self.tokens.update(dict.fromkeys(job_ids, token))
        folder = SweepFolder(plan.folder)
        self.run_dirs |= {job: folder.run(run.run_id) for job, run in zip(job_ids, group.runs, strict=True)}
        self.held.update(job_ids)
        if self.error is not None:
            raise self.error
        return job_ids

    def release(self, job_ids: Sequence[str], **_: Any) -> None:
        if self.release_error is not None:
            raise self.release_error
        self.held = {task for task in self.held if task.partition("_")[0] not in job_ids}

    def cancel(self, job_ids: Sequence[str], *, only_pending: bool = False, **_: Any) -> None:
        self.cancelled.append((list(job_ids), only_pending))
        wanted = {task for job_id in job_ids for task in self._tasks(job_id)}
        for task, state in self.states.items():
            if task in wanted and not state.is_finished and (state.is_pending or not only_pending):
                self.states[task] = State.CANCELLED

    def _tasks(self, job_id: str) -> list[str]:
        """The tasks that an id names: those of an array, or of 7_[0-2,9]."""
        array, _, indices = job_id.partition("_")
        if not indices:
            return [task for task in self.states if task.partition("_")[0] == array]
        tasks = []
        for item in indices.strip("[]").split(","):
            first, _, last = item.partition("-")
            tasks += [f"{array}_{index}" for index in range(int(first), int(last or first) + 1)]
        return tasks

    def squeue(self, *_: Any, **__: Any) -> dict[str, QueuedJob]:
        return {
            job_id: QueuedJob(job_id, state, "JobHeldUser" if job_id in self.held else "None", self.tokens.get(job_id))
            for job_id, state in self.states.items()
            if self.is_shown
        }

    def sacct(self, job_ids: list[str], **_: Any) -> tuple[AccountingRow, ...]:
        for job_id in job_ids:
            if self.states[job_id] is State.COMPLETED:
                (self.run_dirs[job_id] / "summary.json").write_text('{"steps": 3}')
        return tuple(AccountingRow(job_id, state=self.states[job_id], submit_s=1, end_s=2) for job_id in job_ids)
