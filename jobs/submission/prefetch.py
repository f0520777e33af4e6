"""`sweep prefetch`: which inputs the runs of a plan have, and who fetches them, this machine or a job without GPUs."""

from __future__ import annotations

import dataclasses
import shlex
import subprocess
from collections.abc import Sequence

from disttrain.config.command.command_config import CommandConfig
from disttrain.config.hub_inputs import hub_repos, input_config, input_id
from disttrain.config.train_config import TrainConfig
from disttrain.errors import UserError
from disttrain.records.job_files.prefetch_files import (
    PrefetchOutcome,
    PrefetchRequest,
    pinned_for,
    read_manifest,
    read_outcome,
    write_request,
)
from jobs.environ import clean_environ
from jobs.planning.cluster_profile import ClusterProfile
from jobs.planning.expand import import_path
from jobs.planning.interpreter import compute_python
from jobs.planning.plan import Plan, count_runs, setup_lines
from jobs.planning.request_changes import RequestChanges
from jobs.planning.sweep_file import Sweep
from jobs.storage.sweep_folder import SweepFolder
from jobs.submission.messages import note, say
from jobs.submission.prefetch_job import fetch_by_job, fetching_lock, require_no_job, without_gpus


def prefetch(plan: Plan, sweep: Sweep, changes: RequestChanges, *, here: bool, update: bool) -> None:
    """Fetches and encodes the inputs of a plan's runs, and pins the revisions of the hub that they use.

    Args:
        plan: The plan of the sweep.
        sweep: The sweep of the plan.
        changes: What the job requests otherwise than the runs.
        here: Whether a process on this machine does it, and no job.
        update: Whether the newest revisions replace those that are pinned.

    Raises:
        UserError: An input cannot be fetched, the cluster is the debugger, or Slurm refuses the job.
    """
    if plan.cluster.kind == "debug":
        raise UserError("--cluster debug does not use prefetched inputs", hint="choose another cluster")
    inputs = distinct_inputs(plan)
    if commands := sum(isinstance(run.config, CommandConfig) for run in plan.runs):
        note(f"{count_runs(commands)} of a command skipped: sweep prefetch cannot know what your script reads")
    if not inputs:
        say("nothing to fetch: no run trains a model of ours")
        return
    say(_headline(plan, inputs))
    profile = changes.apply(plan.cluster).profile
    folder = SweepFolder(plan.folder)
    folder.create()
    folder.require_owner("choose another folder, with --root or $SWEEP_ROOT")
    request = PrefetchRequest([dataclasses.asdict(config) for config in inputs], list(import_path(sweep)), update)
    if profile is None or here:
        with fetching_lock(folder):
            if profile is not None:
                require_no_job(folder, plan.sweep_name)
            outcome = _fetch_here(folder, request, profile)
    else:
        job_profile = without_gpus(profile, keeps_constraint=changes.partition is None)
        outcome = fetch_by_job(folder, request, job_profile, plan.sweep_name, command_of(folder, profile))
    if outcome.error is not None:
        hint = None
        if outcome.fetched:
            hint = f"{outcome.fetched} of {len(inputs)} inputs are complete; a repetition fetches only the others"
        raise UserError(outcome.error, hint=hint)
    pins = " and the revisions are pinned: sweep submit sends runs that do not ask the hub"
    say(f"all inputs are complete{pins if any(map(hub_repos, inputs)) else ''}")


def distinct_inputs(plan: Plan) -> list[TrainConfig]:
    """The config of each distinct input of the runs, in the order of their first runs."""
    configs = (run.config for run in plan.runs if isinstance(run.config, TrainConfig))
    found = {input_id(inputs): inputs for inputs in map(input_config, configs) if inputs is not None}
    return list(found.values())


def unfetched(folder: SweepFolder, plan: Plan) -> int:
    """The number of a plan's runs that will ask the hub, although `sweep prefetch` has fetched for this sweep."""
    manifest = read_manifest(folder.path)
    configs = [run.config for run in plan.runs if isinstance(run.config, TrainConfig)]
    return sum(bool(manifest and hub_repos(config) and not pinned_for(config, manifest)) for config in configs)


def _headline(plan: Plan, inputs: Sequence[TrainConfig]) -> str:
    """What is to be fetched, in one line."""
    repos = {(repo.kind, repo.name): None for config in inputs for repo in hub_repos(config)}
    count = f"{len(inputs)} input{'s' if len(inputs) > 1 else ''} of {count_runs(len(plan.runs))}"
    if not repos:
        return f"{count}: no download is needed, all data and models are local; they are encoded for the cache"
    return f"{count}: {', '.join(f'{kind} {name}' for kind, name in repos)}"


def command_of(folder: SweepFolder, profile: ClusterProfile | None) -> str:
    """The command that fulfils the request in a folder, as text of a shell."""
    return f"{compute_python(profile)} -u -m disttrain.prefetch_run {shlex.quote(str(folder.path))}"


def _fetch_here(folder: SweepFolder, request: PrefetchRequest, profile: ClusterProfile | None) -> PrefetchOutcome:
    """Starts a process with the interpreter and the setup of the ranks. This process imports none of their packages."""
    write_request(folder.path, request)
    lines = [] if profile is None else setup_lines(profile) or []
    script = "\n".join([*lines, f"exec {command_of(folder, profile)}"])
    with clean_environ():
        ended = subprocess.run(["bash", "-c", script], check=False)
    outcome = read_outcome(folder.path)
    if outcome is None:
        hint = "its error is above; the profile's python and setup must work on this host"
        raise UserError(f"the process that fetches ended with status {ended.returncode}", hint=hint)
    return outcome
