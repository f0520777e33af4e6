"""Plain batch scripts of a sweep, which a user submits by hand: they need no submitit, and nothing of jobs."""

from __future__ import annotations

import dataclasses
import itertools
import os
import secrets
import shlex
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from disttrain.errors import UserError, shorten
from disttrain.records.atomic_write import write_text
from disttrain.records.job_files.prefetch_files import FOLDER_NAME as PREFETCH_NAME
from disttrain.records.job_files.prefetch_files import MANIFEST_NAME
from disttrain.records.json_values import read_object, to_json
from disttrain.records.lifecycle.attempt_log import POLICY
from disttrain.records.record_files import RUN_NAME
from jobs.planning.cluster import template_folders
from jobs.planning.interpreter import compute_python
from jobs.planning.labels import Variation
from jobs.planning.plan import JobGroup, Plan, count_runs, request_of, run_json
from jobs.planning.sweep_file import Sweep
from jobs.schedulers.scheduler import OnSent, Sent
from jobs.schedulers.slurm_scheduler import SlurmScheduler
from jobs.slurm.submit import job_comment
from jobs.storage.code_snapshot import STORE
from jobs.storage.ledger import add_script
from jobs.storage.sweep_folder import SweepFolder
from jobs.submission.launch import launch_with
from jobs.submission.messages import note, say

_TEMPLATE = "plain.sh.j2"
# What sweep prefetch, or a call that was interrupted before plan.json, may have left.
_OURS = frozenset({
    "logs", "runs", "scripts", "request.json", "sweep.yaml", "plan.json", PREFETCH_NAME, MANIFEST_NAME,
})  # fmt: skip


class ScriptWriter(SlurmScheduler):
    """Slurm, to which the user submits the scripts that this writes, one for each job group."""

    action = "writing scripts for"

    def require(self, cluster_name: str) -> None:
        """Needs nothing: the scripts may be written where no Slurm is."""

    def send(self, plan: Plan, overrides: Mapping[str, str], on_sent: OnSent) -> Sent:  # noqa: ARG002 - nothing is sent
        folder = SweepFolder(plan.folder)
        folder.scripts.mkdir(mode=0o700, exist_ok=True)
        for path in folder.scripts.glob("*.sh"):
            path.unlink()  # what it would run is done, was submitted, or is in a new one
        label = Variation(folder.planned_runs()).label  # also with few runs left, as in `sweep status`
        for name, group in named_groups(plan):
            token, path = secrets.token_hex(8), folder.scripts / f"{name}.sh"
            for run in group.runs:
                _write_policy(folder.run(run.run_id), group)
            run_ids = [run.run_id for run in group.runs]
            add_script(folder.path, run_ids, time.time(), overrides, token, request_of(group))
            write_text(path, render(plan, group, path, token, label), private=True)
            say(f"  {group.allocation}: {count_runs(len(group.runs))} in {path}")
        return Sent()


def write_scripts(plan: Plan, sweep: Sweep) -> None:
    """Writes the folder of a sweep with a batch script for each job group. What was submitted or is done is left out.

    Args:
        plan: The plan of the complete sweep, in that folder.
        sweep: The sweep of the plan.

    Raises:
        UserError: The folder has something else in it, cannot be written, or another command works in it; or it cannot
            be known what was submitted.
    """
    folder = SweepFolder(plan.folder)
    check_folder(folder, plan)
    if (folder.sweep_name, folder.cluster_name) != (plan.sweep_name, plan.cluster.name):
        folder.create()
        (folder.path / STORE).mkdir(mode=0o700, exist_ok=True)  # the folder is below no root
    launch_with(ScriptWriter(os.environ), plan, sweep)


def check_folder(folder: SweepFolder, plan: Plan) -> None:
    """Checks that a folder is new, or that of the same sweep.

    Raises:
        UserError: It has something else in it.
    """
    hint = "choose a folder that does not exist or is empty"
    if folder.path.exists() and not folder.path.is_dir():
        raise UserError(f"{str(folder.path)!r} is not a folder", where="-o", hint=hint)
    if folder.plan_file.exists():
        stored = folder.plan()
        if (stored.sweep, stored.cluster) != (plan.sweep_name, plan.cluster.name):
            message = f"{str(folder.path)!r} has the sweep {stored.sweep!r} on {stored.cluster!r}"
            raise UserError(f"{message}, not {plan.sweep_name!r} on {plan.cluster.name!r}", where="-o", hint=hint)
        return
    names = sorted(path.name for path in folder.path.iterdir()) if folder.path.exists() else []
    others = [name for name in names if name not in _OURS and not name.startswith(".")]
    if others:
        raise UserError(f"{str(folder.path)!r} has other files, such as {others[0]!r}", where="-o", hint=hint)


def note_unused_pins(folder: Path, own: Path) -> None:
    """Notes that `sweep prefetch` has pinned revisions in the sweep's own folder, and not in that of the scripts."""
    if (own / MANIFEST_NAME).exists() and not (folder / MANIFEST_NAME).exists():
        note(f"these runs will ask the hub: sweep prefetch has pinned revisions for -o {shlex.quote(str(own))} only")


def named_groups(plan: Plan) -> Iterator[tuple[str, JobGroup]]:
    """The job groups, each with the name of its script: ``2x2``, ``2x2-torchrun``, ``2x2-2``."""
    used: set[str] = set()
    for group in plan.groups:
        name = f"{group.allocation}-torchrun" if group.runs[0].by_node else str(group.allocation)
        numbered = (f"{name}-{number}" for number in itertools.count(2))
        free = next(text for text in itertools.chain([name], numbered) if text not in used)
        used.add(free)
        yield free, group


def render(plan: Plan, group: JobGroup, path: Path, token: str, label: Callable[[Mapping[str, Any]], str]) -> str:
    """The text of the script of a group.

    Args:
        plan: The plan of the runs.
        group: One of its groups.
        path: The file of the script.
        token: What its jobs will carry.
        label: A function that returns the label of a run of plan.json.
    """
    import jinja2  # it takes 0.1 s, which no other command needs

    folder = next(folder for folder in template_folders() if (folder / _TEMPLATE).is_file())
    text = (folder / _TEMPLATE).read_text(encoding="utf-8")
    environment = jinja2.Environment(  # noqa: S701 - a shell script: each value is quoted for a shell
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    environment.filters["sh"] = shlex.quote
    return environment.from_string(text).render(
        title=shorten(f"{count_runs(len(group.runs))} of the sweep {plan.sweep_name} on {group.allocation}"),
        path=str(path),
        folder=str(plan.folder),
        options=_options(plan, group, token),
        runs=[(run.run_id, shorten(label(run_json(run)))) for run in group.runs],
        job_name=plan.sweep_name,
        token=token,
        setup=group.parameters.get("setup") or (),
        by_node=group.runs[0].by_node,
        srun_args=shlex.join(group.parameters["srun_args"]),
        python=compute_python(group.profile),
    )


def _options(plan: Plan, group: JobGroup, token: str) -> list[str]:
    """The options of sbatch, as `sweep submit` sends them, with the token in the comment."""
    lines = plan.script(group).splitlines()
    options = [line.removeprefix("#SBATCH ") for line in lines if line.startswith("#SBATCH --")]
    others = [option for option in options if not option.startswith("--comment=")]
    return [*others, f"--comment={shlex.quote(job_comment(token, group.parameters))}"]


def _write_policy(run_dir: Path, group: JobGroup) -> None:
    """Adds to run.json how the run resumes: its ranks get it from nowhere else."""
    assert group.profile is not None
    path = run_dir / RUN_NAME
    policy = dataclasses.asdict(group.profile.resume_policy)
    write_text(path, to_json({**(read_object(path) or {}), POLICY: policy}, indent=2) + "\n", private=True)
