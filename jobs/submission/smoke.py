"""Smoke runs: a short run of each allocation and command is sent first, and the other runs wait for its success."""

from __future__ import annotations

import itertools
import os
import shutil
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from disttrain.config.command.command_config import CommandConfig
from disttrain.config.hub_inputs import PINNED
from disttrain.config.train_config import TrainConfig
from disttrain.records.json_values import read_object
from disttrain.records.record_files import RUN_NAME
from jobs.planning.allocation import Allocation
from jobs.planning.cluster import Cluster
from jobs.planning.cluster_profile import ClusterProfile
from jobs.planning.expand import RunSpec
from jobs.planning.plan import JobGroup, Plan, count_runs, is_link, make_plan, plan_json, run_json, with_runs
from jobs.planning.sbatch_options import with_options
from jobs.planning.sweep_file import Sweep
from jobs.results.failures.smoke_reason import smoke_failure
from jobs.results.result import Result
from jobs.results.status import read_status
from jobs.schedulers.states import scheduler_for
from jobs.storage.ledger import read_ledger, skip
from jobs.storage.sweep_folder import SweepFolder, prepare_runs, submitted_code
from jobs.submission.launch import Admitted, send, write_errors
from jobs.submission.messages import note, say

_STEPS = 2
_EVAL_EXAMPLES = 64  # or one for each rank
_LIMIT_MIN, _LIMIT = 10, "00:10:00"
_ALIVE_S = 120.0  # a script without metrics has run long enough then

# What a smoke run tests for all runs that have it: allocation, whether torchrun starts the ranks, command or model.
_Key = tuple[Allocation, bool, str]


def smoke_plan(plan: Plan, extra_arguments: str = "") -> Plan:
    """The smoke runs of a plan: the first run of each allocation, launcher and command, made short.

    Runs that only measure a link need none. The jobs have another name than those of the sweep, a short time limit,
    and no second attempt after it.

    Args:
        plan: The plan.
        extra_arguments: What makes a run of a command short. Without it, the script is stopped when it has shown
            enough.
    """
    first: dict[_Key, RunSpec] = {}
    for run in plan.runs:
        if not is_link(run_json(run)):
            first.setdefault(_key(run), run)
    runs = [replace(run, config=_short_config(run, extra_arguments)) for run in first.values()]
    folder = SweepFolder(plan.folder).smoke
    return make_plan(f"{plan.sweep_name}-smoke", runs, _short_jobs(plan.cluster), folder.path)


def _key(run: RunSpec) -> _Key:
    config = run.config
    return run.allocation, run.by_node, config.command if isinstance(config, CommandConfig) else config.model


def _short_config(run: RunSpec, extra_arguments: str) -> TrainConfig | CommandConfig:
    config = run.config
    if isinstance(config, CommandConfig):
        if extra_arguments:
            return replace(config, extra_arguments=extra_arguments)
        return replace(config, stop_after_s=_ALIVE_S)
    most = max(_EVAL_EXAMPLES, run.allocation.world_size)
    if config.max_eval_examples is not None:
        most = min(config.max_eval_examples, most)
    return replace(
        config,
        max_steps=_STEPS,
        max_eval_examples=most,
        eval_every=None,
        checkpoint_every=None,
        save_model=False,
        keep_best_model=False,
        timing_warmup_steps=0,
    )


def _short_jobs(cluster: Cluster) -> Cluster:
    """The cluster with jobs that end soon, are not sent again by themselves, and notify no one."""
    return replace(
        cluster,
        profile=cluster.profile and _short_job(cluster.profile),
        by_allocation={allocation: _short_job(profile) for allocation, profile in cluster.by_allocation.items()},
    )


def _short_job(profile: ClusterProfile) -> ClusterProfile:
    changes: dict[str, object] = {"max_timeouts": 0, "notify": None}
    if profile.time_min > _LIMIT_MIN:
        changes["time"] = _LIMIT
    if profile.requeue == "chain":
        changes["requeue"] = "off"  # the next job would have another id, and the runs wait for this one
    return profile.model_copy(update=changes)


class SmokeGate:
    """Lets the runs of one submission through when their smoke runs allow it; sends each smoke run once.

    Args:
        sweep: The sweep.
        max_ranks: The number of ranks that the local executor may run at the same time.
    """

    def __init__(self, sweep: Sweep, max_ranks: int | None = None) -> None:
        self._sweep = sweep
        self._max_ranks = max_ranks
        self._run_ids: dict[_Key, str] = {}  # of the smoke runs that this submission has sent

    def __call__(self, plan: Plan) -> Admitted:
        """Sends the smoke runs of a plan that were not sent yet.

        On this machine it waits for their end. The folder of the sweep is under its submission lock.

        Args:
            plan: The plan of the runs to send.

        Returns:
            The runs that can be sent, each to wait for its smoke run; and those whose smoke run Slurm does not accept
            now. The runs of a smoke run that has failed already are noted in the ledger as skipped.

        Raises:
            UserError: Slurm refuses a smoke run, or the disk is full.
        """
        folder = SweepFolder(plan.folder)
        needed = smoke_plan(plan, self._sweep.commands.smoke)
        new = with_runs(needed, {run.run_id for run in needed.runs if _key(run) not in self._run_ids})
        if new.runs:
            self._send(folder, new)
        rows = {}
        if self._run_ids:
            rows = {row.run_id: row for row in read_status(folder.smoke, os.environ).results}
        return self._admit(folder, plan, rows)

    def _send(self, folder: SweepFolder, plan: Plan) -> None:
        _prepare(folder, plan)
        scheduler = scheduler_for(plan.cluster.kind, os.environ, max_ranks=self._max_ranks, in_process=True)
        say("smoke runs first:")
        sent = send(folder.smoke, plan, scheduler, self._sweep.overrides, "so do the runs after {}")
        if sent.work:
            sent.work(lambda: None)
        self._run_ids |= {_key(run): run.run_id for run in plan.runs if run.run_id not in sent.unsent}

    def _admit(self, folder: SweepFolder, plan: Plan, rows: Mapping[str, Result]) -> Admitted:
        """What of a plan can be sent, by the states of the smoke runs."""
        jobs = {run_id: jobs[-1].job_id for run_id, jobs in read_ledger(folder.smoke.path).jobs.items()}
        groups, unsent = [], []
        for key, group in itertools.chain.from_iterable(map(_by_smoke_run, plan.groups)):
            run_ids = [run.run_id for run in group.runs]
            row = rows[self._run_ids[key]] if key in self._run_ids else None
            if key is None or (row is not None and row.state.is_success):
                groups.append(group)
            elif row is None:
                unsent += run_ids
            elif row.state.is_finished:
                note(f"{smoke_failure(row)}; not sent: {count_runs(len(run_ids))} of {group.allocation}")
                skip(folder.path, run_ids, time.time(), self._sweep.overrides, [jobs[row.run_id]])
            else:
                groups.append(_waiting(group, jobs[row.run_id]))
        return Admitted(replace(plan, groups=tuple(groups)), frozenset(unsent))


def _prepare(folder: SweepFolder, plan: Plan) -> None:
    """Writes the files of smoke runs, as those of a sweep. plan.json keeps the smoke runs of earlier submissions.

    A smoke run starts without the files of an earlier one: its script would resume from a checkpoint, and do nothing.
    """
    smoke, runs = folder.smoke, [run_json(run) for run in plan.runs]
    _, import_path = folder.read_request()
    with write_errors(folder, "nothing was sent; free some space, then submit again"):
        smoke.create()
        for run in runs:
            _move_aside(smoke.run(run["run_id"]))
        ids = {run["run_id"] for run in runs}
        earlier = [run for run in smoke.planned_runs() if run["run_id"] not in ids]
        smoke.write_plan({**plan_json(plan), "runs": [*runs, *earlier]})
        smoke.write_request(plan.cluster, import_path)
        # The runs that wait are prepared: a smoke run starts the same code, and reads the same revisions of the hub.
        pinned = [{**run, **_pinned(folder, run["run_id"])} for run in runs]
        prepare_runs(smoke, pinned, import_path, code=submitted_code(folder, list(ids)))


def _by_smoke_run(group: JobGroup) -> list[tuple[_Key | None, JobGroup]]:
    """The parts of a group that wait for different smoke runs; a part without a key waits for none."""
    parts: dict[_Key | None, list[RunSpec]] = {}
    for run in group.runs:
        parts.setdefault(None if is_link(run_json(run)) else _key(run), []).append(run)
    return [(key, replace(group, runs=tuple(runs))) for key, runs in parts.items()]


def _move_aside(run_dir: Path) -> None:
    """Moves the folder of an earlier smoke run, whose job may be about to end, and removes the one before it."""
    earlier = run_dir.with_name(f".{run_dir.name}.1")
    if run_dir.exists():
        shutil.rmtree(earlier, ignore_errors=True)
        run_dir.rename(earlier)


def _pinned(folder: SweepFolder, run_id: str) -> dict[str, Any]:
    """The field of run.json with the revisions that `sweep prefetch` has pinned for a run; empty without them."""
    described = read_object(folder.run(run_id) / RUN_NAME) or {}
    return {PINNED: described[PINNED]} if PINNED in described else {}


def _waiting(group: JobGroup, job_id: str) -> JobGroup:
    """The group with jobs that start when this job has succeeded, and that Slurm cancels when it has failed."""
    own = (group.parameters.get("additional_parameters") or {}).get("dependency")
    dependency = ",".join(filter(None, [f"afterok:{job_id}", own]))
    options = {"dependency": dependency, "kill-on-invalid-dep": "yes"}
    return replace(group, after=(job_id,), parameters=with_options(group.parameters, options))
