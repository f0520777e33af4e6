"""From a plan to its jobs: finds the runs to send, writes their files, sends them and records them."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from disttrain.config.command.command_config import SECTION
from disttrain.config.train_config import PATH_FIELDS, TrainConfig
from disttrain.errors import UserError
from disttrain.records.json_values import parse_object, to_json
from jobs.local.debug import run_in_debugger, scratch_folder
from jobs.planning.expand import import_path
from jobs.planning.plan import JobGroup, Plan, count_runs, is_link, plan_json, run_json, with_runs
from jobs.planning.sweep_file import Sweep
from jobs.schedulers.scheduler import Scheduler, Sent
from jobs.schedulers.states import scheduler_for
from jobs.storage.code_snapshot import Snapshot
from jobs.storage.dropped_runs import dropped_runs
from jobs.storage.ledger import Ledger, read_ledger, submission_lock
from jobs.storage.name_links import link_names_or_warn
from jobs.storage.same_data import is_same_data
from jobs.storage.sweep_folder import SweepFolder, prepare, prepare_runs
from jobs.submission.messages import note, say
from jobs.submission.prefetch import unfetched
from jobs.submission.recovery import end_unneeded_smoke
from jobs.submission.run_code import copy_code
from jobs.submission.selection import select_runs


@dataclass(frozen=True)
class Admitted:
    """What a gate lets through.

    Attributes:
        plan: The runs that are sent now.
        unsent: The ids of the runs that have to wait, because Slurm accepts no more jobs of this user at present.
    """

    plan: Plan
    unsent: frozenset[str] = frozenset()


# Sends what must succeed before the runs of a plan.
Gate = Callable[[Plan], Admitted]


def launch(
    plan: Plan,
    sweep: Sweep,
    *,
    max_ranks: int | None,
    on_poll: Callable[[], None] | None = None,
    replace: bool = False,
    gate: Gate = Admitted,
) -> frozenset[str]:
    """Sends the runs of the plan that are not done, queued, running or cancelled.

    Args:
        plan: The plan of the complete sweep on one cluster.
        sweep: The sweep of the plan.
        max_ranks: The number of ranks that the local executor may run at the same time.
        on_poll: A function to call again and again while a local queue runs in this process. Without it, a local queue
            runs in the background.
        replace: Whether waiting runs whose request differs from the plan's are cancelled, and sent again.
        gate: Decides which of the runs are sent now, and for which jobs they wait.

    Returns:
        The ids of the runs that were not sent, because Slurm accepts no more jobs of this user at present.

    Raises:
        UserError: Another submission of the sweep is running, a damaged file hides that runs are done, or the scheduler
            refuses a job.
    """
    scheduler = scheduler_for(plan.cluster.kind, os.environ, max_ranks=max_ranks, in_process=on_poll is not None)
    sent = launch_with(scheduler, plan, sweep, replace=replace, gate=gate)
    if sent.work and on_poll:
        sent.work(on_poll)
    return sent.unsent


def launch_with(
    scheduler: Scheduler, plan: Plan, sweep: Sweep, *, replace: bool = False, gate: Gate = Admitted
) -> Sent:
    """Sends the runs of the plan that are not done, queued, running or cancelled, by a scheduler of the plan's cluster.

    Raises:
        UserError: As in `launch`.
    """
    folder = SweepFolder(plan.folder)
    scheduler.require(plan.cluster.name)
    folder.create()
    folder.require_owner("choose another folder, with --root or $SWEEP_ROOT")
    with submission_lock(folder.path):
        folder.require_space(len(plan.runs))
        ledger = read_ledger(folder.path)
        _check_same_data(folder, plan, ledger)
        ledger = scheduler.finish_interrupted(folder, ledger, note)
        submitted = _submitted(folder, ledger)
        dropped = dropped_runs(sweep, [run.run_id for run in plan.runs], submitted)
        selection = select_runs(folder, plan, ledger, scheduler, dropped, replace=replace)
        end_unneeded_smoke(folder, ledger, scheduler, again=selection.missing)
        missing = with_runs(plan, selection.missing)
        with write_errors(folder, "nothing was sent; free some space, then submit again"):
            code = copy_code(folder, [missing], import_path(sweep))
            _prepare(folder, sweep, plan, missing, code, submitted, dropped)
            folder.record_fingerprints(_paths_of(missing))
        if count := unfetched(folder, missing):
            note(f"{count_runs(count)} will ask the hub: sweep prefetch has not fetched what they read")
        link_names_or_warn(folder)
        admitted = gate(missing)
        sent = send(folder, admitted.plan, scheduler, sweep.overrides)
        return dataclasses.replace(sent, unsent=sent.unsent | admitted.unsent)


def launch_rest(plan: Plan, sweep: Sweep, unsent: frozenset[str], gate: Gate = Admitted) -> frozenset[str] | None:
    """Sends the runs that did not fit before.

    Args:
        plan: The plan of the complete sweep.
        sweep: The sweep of the plan.
        unsent: The ids of the runs. Those that plan.json has no longer are left out.
        gate: As in `launch`.

    Returns:
        The ids of the runs that still do not fit. None if another submission has changed the sweep, so that they are
        its runs now.

    Raises:
        UserError: As in `launch`.
    """
    folder = SweepFolder(plan.folder)
    scheduler = scheduler_for(plan.cluster.kind, os.environ)
    with submission_lock(folder.path):
        present = {run["run_id"]: run for run in folder.planned_runs()}
        rest = with_runs(plan, unsent & present.keys())
        cluster, folders = folder.read_request()
        if gone := len(unsent - present.keys()):
            note(f"no longer planned, after another submission or sweep forget: {count_runs(gone)} that did not fit")
        if not rest.runs:
            return None
        if cluster != plan.cluster or any(_is_changed(run_json(run), present[run.run_id]) for run in rest.runs):
            note("another submission has changed the sweep; sweep submit sends those runs that the file still has")
            return None
        ledger = scheduler.finish_interrupted(folder, read_ledger(folder.path), note)
        selection = select_runs(folder, rest, ledger, scheduler, (), replace=False)
        missing = with_runs(rest, selection.missing)
        with write_errors(folder, "nothing was sent"):
            prepare_runs(folder, [run_json(run) for run in missing.runs], folders)
        admitted = gate(missing)
        return send(folder, admitted.plan, scheduler, sweep.overrides).unsent | admitted.unsent


def _is_changed(run: Mapping[str, Any], planned: Mapping[str, Any]) -> bool:
    """Whether plan.json has the run as dropped, or with another config: fields that are not part of its id differ."""
    now = parse_object(to_json(run).encode())
    return bool(planned.get("dropped")) or any(now.get(name) != planned.get(name) for name in ("train", SECTION))


def send(
    folder: SweepFolder,
    plan: Plan,
    scheduler: Scheduler,
    overrides: Mapping[str, str],
    later: str = "the next sweep submit sends {}, and submit --wait does it by itself",
) -> Sent:
    """Sends every run of a plan, whose folders are prepared, with a line for each group.

    Args:
        folder: The folder of the sweep.
        plan: The plan of the runs.
        scheduler: The scheduler of the plan's cluster.
        overrides: The texts of ``--set``.
        later: What sends the runs that Slurm does not accept now.

    Raises:
        UserError: The scheduler refuses a group, or the disk is full.
    """
    with write_errors(folder, "sweep status shows what was sent; free some space, then submit again"):
        sent = scheduler.send(plan, overrides, partial(_on_sent, folder))
    if sent.unsent:
        verb, pronoun = ("wait", "them") if len(sent.unsent) > 1 else ("waits", "it")
        text = f"{count_runs(len(sent.unsent))} {verb} for the limit of jobs that Slurm accepts ({sent.reason})"
        note(f"{text}; {later.format(pronoun)}")
    return sent


def _submitted(folder: SweepFolder, ledger: Ledger) -> dict[str, Mapping[str, str] | None]:
    """The overrides of each submitted run. With a damaged line, every run of plan.json may have been submitted."""
    if not ledger.damaged_lines:
        return ledger.overrides()
    unknown: dict[str, Mapping[str, str] | None] = {run["run_id"]: None for run in folder.planned_runs()}
    return unknown | ledger.overrides()


def _paths_of(plan: Plan) -> set[str]:
    """The paths and hub ids of data and pretrained weights in a plan."""
    configs = [run.config for run in plan.runs if isinstance(run.config, TrainConfig)]
    return set(filter(None, (getattr(config, field) for config in configs for field in PATH_FIELDS)))


@contextlib.contextmanager
def write_errors(folder: SweepFolder, hint: str) -> Iterator[None]:
    """Turns the error of a full disk or a read-only folder into one line that says what was sent."""
    try:
        yield
    except OSError as error:
        message = f"{error.filename or str(folder.path)!r} cannot be written: {error.strerror}"
        raise UserError(message, hint=hint) from error


def _prepare(
    folder: SweepFolder,
    sweep: Sweep,
    plan: Plan,
    missing: Plan,
    code: Mapping[str, Snapshot],
    submitted: Collection[str] = (),
    dropped: Collection[str] = (),
) -> None:
    runs, folders = [run_json(run) for run in missing.runs], import_path(sweep)
    folder.write_request(plan.cluster, folders)
    prepare(folder, sweep.document.text, plan_json(plan), [run["run_id"] for run in runs], submitted, dropped)
    prepare_runs(folder, runs, folders, code=code)
    if runs:
        folder.forget_notifications()


def _on_sent(folder: SweepFolder, group: JobGroup, job_id: str) -> None:
    """Makes the batch script and submitit's files private, also in a folder of logs that others may read."""
    names = [f"{job_id}_submission.sh", f"{job_id}_submitted.pkl"]
    names += [f"{job_id}_{index}_submitted.pkl" for index in range(len(group.runs))]
    for name in names:  # not by a pattern: the folder has the files of all other groups too
        with contextlib.suppress(FileNotFoundError):
            (folder.logs / name).chmod(0o600)
    after = f", after job {', '.join(group.after)}" if group.after else ""
    say(f"  {group.allocation}: {count_runs(len(group.runs))} as job {job_id}{after}")


def _check_same_data(folder: SweepFolder, plan: Plan, ledger: Ledger) -> None:
    """Checks that runs with the same id use the same files.

    A run id does not depend on the folder of the sweep file, so ./data in two folders gives the same id. Data that were
    moved or copied are the same.
    """
    earlier = {run["run_id"]: run["train"] for run in folder.planned_runs() if run["run_id"] in ledger.jobs}
    fingerprints = folder.fingerprints()
    moved: dict[tuple[str, str, str], None] = {}
    for run in plan.runs:
        if run.run_id not in earlier or not isinstance(run.config, TrainConfig):
            continue
        for field in PATH_FIELDS:
            before, now = earlier[run.run_id].get(field), getattr(run.config, field)
            if before == now or (field, before, now) in moved:
                continue
            if not is_same_data(str(before), str(now), fingerprints):
                message = f"{plan.sweep_name!r} was submitted with {field} {before!r}, but now has {now!r}"
                hint = "use another name for this sweep, or another --root"
                raise UserError(message, where=str(folder.path), hint=hint)
            moved[field, before, now] = None
    for field, before, now in moved:
        note(f"{field} was {before!r}; {now!r} has the same files")


def debug(plan: Plan, sweep: Sweep) -> None:
    """Runs every run of the plan in this process, as one rank, in a scratch folder. Link runs are left out.

    The files are not copied: a breakpoint is for the file that the user edits.
    """
    trained = with_runs(plan, {run.run_id for run in plan.runs if not is_link(run_json(run))})
    scratch = dataclasses.replace(trained, folder=scratch_folder(plan.sweep_name))
    folder = SweepFolder(scratch.folder)
    folder.create()
    _prepare(folder, sweep, scratch, scratch, {})
    print(f"debug: {count_runs(len(scratch.runs))} as one rank each, in {scratch.folder}")
    run_in_debugger(scratch, scratch.runs)
