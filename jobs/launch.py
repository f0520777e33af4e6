"""From a plan to its jobs: finds the runs to submit, writes their files, submits them and records them."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from typing import TextIO

from disttrain.config.train_config import LINK, PATH_FIELDS
from disttrain.errors import UserError
from jobs.local.debug import run_in_debugger, scratch_folder
from jobs.local.local_queue import send_to_local
from jobs.planning.cluster_profile import LOCAL
from jobs.planning.plan import JobGroup, Plan, count_runs, plan_json, run_json, with_runs
from jobs.planning.sweep_file import Sweep
from jobs.results.run_records import is_complete
from jobs.results.status import States, read_states
from jobs.slurm.interrupted import finish_interrupted
from jobs.slurm.states import JobPhase, State
from jobs.slurm.submit import require_slurm, send_to_slurm
from jobs.storage.dropped_runs import dropped_runs
from jobs.storage.ledger import LEDGER_NAME, Ledger, read_ledger, submission_lock
from jobs.storage.name_links import link_names_or_warn
from jobs.storage.run_lookup import list_names
from jobs.storage.same_data import is_same_data
from jobs.storage.sweep_folder import SweepFolder, prepare


def launch(plan: Plan, sweep: Sweep, *, max_ranks: int | None, on_poll: Callable[[], None] | None = None) -> None:
    """Submits the runs of the plan that are not done, queued or running.

    Args:
        plan: The plan of the complete sweep on one cluster.
        sweep: The sweep of the plan.
        max_ranks: The number of ranks that the local executor may run at the same time.
        on_poll: A function to call again and again while a local queue runs in this process. Without it, a local queue
            runs in the background.

    Raises:
        UserError: Another submission of the sweep is running, a damaged file hides that runs are done, or the scheduler
            refuses a job.
    """
    folder = SweepFolder(plan.folder)
    queue = None
    if plan.cluster_name != LOCAL:
        require_slurm(plan.cluster_name)
    folder.create()
    if not folder.is_owner():
        hint = "choose another folder, with --root or $SWEEP_ROOT"
        raise UserError(f"{str(folder.path)!r} belongs to another user, whose jobs these are", hint=hint)
    with submission_lock(folder.path):
        folder.require_space(len(plan.runs))
        ledger = read_ledger(folder.path)
        _check_same_data(folder, plan, ledger)
        if plan.cluster_name != LOCAL:
            ledger = finish_interrupted(folder, ledger, os.environ, _note)
        missing = with_runs(plan, _missing(folder, plan, ledger))
        with _write_errors(folder, "nothing was sent; free some space, then submit again"):
            _prepare(folder, sweep, plan, missing, _submitted(folder, ledger))
            folder.record_fingerprints(_paths_of(missing))
        if folder.is_owner():
            link_names_or_warn(folder)
        with _write_errors(folder, "sweep status shows what was sent; free some space, then submit again"):
            if plan.cluster_name != LOCAL:
                send_to_slurm(missing, sweep.overrides, time.time, partial(_on_sent, folder))
            elif missing.runs:
                queue = send_to_local(missing, sweep.overrides, max_ranks, time.time, in_process=on_poll is not None)
    if queue and on_poll:
        queue.run(on_poll)


def _submitted(folder: SweepFolder, ledger: Ledger) -> dict[str, Mapping[str, str] | None]:
    """The overrides of each submitted run. With a damaged line, every run of plan.json may have been submitted."""
    if not ledger.damaged_lines:
        return ledger.overrides()
    unknown: dict[str, Mapping[str, str] | None] = {run["run_id"]: None for run in folder.planned_runs()}
    return unknown | ledger.overrides()


def _paths_of(plan: Plan) -> set[str]:
    """The paths and hub ids of data and pretrained weights in a plan."""
    values = (getattr(run.config, field) for run in plan.runs for field in PATH_FIELDS)
    return set(filter(None, values))


@contextlib.contextmanager
def _write_errors(folder: SweepFolder, hint: str) -> Iterator[None]:
    """Turns the error of a full disk or a read-only folder into one line that says what was sent."""
    try:
        yield
    except OSError as error:
        message = f"{error.filename or str(folder.path)!r} cannot be written: {error.strerror}"
        raise UserError(message, hint=hint) from error


def _prepare(
    folder: SweepFolder, sweep: Sweep, plan: Plan, missing: Plan, submitted: Mapping[str, Mapping[str, str] | None]
) -> None:
    runs = [run_json(run) for run in missing.runs]
    dropped = dropped_runs(sweep, [run.run_id for run in plan.runs], submitted)
    # The user's own model family is in the folder of the sweep file or in the working directory.
    import_path = (sweep.folder, os.getcwd())
    prepare(folder, sweep.document.text, plan_json(plan), runs, submitted.keys(), dropped, import_path)
    _note_dropped(dropped)


def _note_dropped(dropped: Collection[str]) -> None:
    """Prints how many runs are dropped."""
    if dropped:
        verb, pronoun = "are", "them"
        if len(dropped) == 1:
            verb, pronoun = "is", "it"
        note = f"{count_runs(len(dropped))} {verb} no longer in the sweep file; sweep forget removes {pronoun}"
        _note(note)


def _on_sent(folder: SweepFolder, group: JobGroup, job_id: str) -> None:
    """Makes the batch script and submitit's files private, also in a folder of logs that others may read."""
    for path in folder.logs.glob(f"{job_id}_*"):
        path.chmod(0o600)
    _say(f"  {group.allocation}: {count_runs(len(group.runs))} as job {job_id}")


def _say(line: str, stream: TextIO | None = None) -> None:
    """Prints a line. A reader that has left (| head) and a full disk must not end a submission in its middle."""
    stream = stream or sys.stdout
    try:
        print(line, file=stream, flush=True)
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _note(text: str) -> None:
    _say(f"note: {text}", sys.stderr)


def _check_same_data(folder: SweepFolder, plan: Plan, ledger: Ledger) -> None:
    """Checks that runs with the same id use the same files.

    A run id does not depend on the folder of the sweep file, so ./data in two folders gives the same id. Data that were
    moved or copied are the same.
    """
    earlier = {run["run_id"]: run["train"] for run in folder.planned_runs() if run["run_id"] in ledger.jobs}
    fingerprints = folder.fingerprints()
    moved: dict[tuple[str, str, str], None] = {}
    for run in plan.runs:
        if run.run_id not in earlier:
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
        _note(f"{field} was {before!r}; {now!r} has the same files")


def _missing(folder: SweepFolder, plan: Plan, ledger: Ledger) -> frozenset[str]:
    """The ids of the runs to submit, after a line that says how many there are."""
    planned = [run.run_id for run in plan.runs]
    submitted = [run_id for run_id in planned if run_id in ledger.jobs]
    states = States({})
    if ledger.jobs or ledger.damaged_lines:
        states = read_states(folder, submitted, ledger, os.environ)
    done = {run_id for run_id, state in states.by_run.items() if state is State.COMPLETED}
    active = {run_id for run_id, state in states.by_run.items() if state.phase is not JobPhase.FINISHED}
    missing = frozenset(planned) - done - active
    # With a damaged line, the job or the last state of a run may be missing.
    doubtful = [run_id for run_id in planned if run_id in missing and (states.damage or run_id not in ledger.jobs)]
    _check_unfinished(folder, doubtful, states.damage)
    for notice in (*states.damage, *states.notices):
        _note(notice)
    line = f"{plan.sweep_name} on {plan.cluster_name}: submitting {len(missing)} of {count_runs(len(planned))}"
    if done or active:
        line += f" ({len(done)} done, {len(active)} queued or running)"
    _say(line)
    return missing


def _check_unfinished(folder: SweepFolder, run_ids: Sequence[str], damage: Sequence[str]) -> None:
    """Checks that none of these runs has finished: a submission removes the summary of each run that it sends.

    Args:
        folder: The folder of the sweep.
        run_ids: The runs that are about to be sent although the files may lack that they are done.
        damage: What is damaged in the ledger and the accounting.
    """
    finished = [run_id for run_id in run_ids if is_complete(folder.run(run_id))]
    if finished:
        cause = "; ".join(damage) or f"{LEDGER_NAME} lacks jobs"
        message = f"{cause}; {count_runs(len(finished))} with a summary would be repeated: {list_names(finished)}"
        hint = "restore the line; sweep forget RUN removes a run that should run again"
        raise UserError(message, where=str(folder.path), hint=hint)


def debug(plan: Plan, sweep: Sweep) -> None:
    """Runs every run of the plan in this process, as one rank, in a scratch folder. Link runs are left out."""
    trained = with_runs(plan, {run.run_id for run in plan.runs if run.config.model != LINK})
    scratch = dataclasses.replace(trained, folder=scratch_folder(plan.sweep_name))
    folder = SweepFolder(scratch.folder)
    _prepare(folder, sweep, scratch, scratch, {})
    print(f"debug: {count_runs(len(scratch.runs))} as one rank each, in {scratch.folder}")
    run_in_debugger(scratch, scratch.runs)
