"""Which runs of a plan are sent: those that are not done, queued, running or cancelled."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from disttrain.config.train_config import TrainConfig
from disttrain.errors import UserError
from jobs.planning.plan import Plan, count_runs, request_of
from jobs.results.run_records import is_complete
from jobs.schedulers.conclude import Conclusion
from jobs.schedulers.scheduler import Scheduler
from jobs.schedulers.states import States, read_states
from jobs.slurm.states import JobPhase, State
from jobs.storage.ledger import LEDGER_NAME, Job, Ledger
from jobs.storage.run_facts import has_checkpoint
from jobs.storage.run_lookup import list_names
from jobs.storage.sweep_folder import SweepFolder
from jobs.submission.messages import note, say

_REPLACE_WAIT_S = 20.0  # the longest time until the controller has cancelled jobs that wait


@dataclass(frozen=True)
class Selection:
    """The planned runs by what becomes of them, each a set of run ids."""

    missing: frozenset[str]
    done: frozenset[str]
    active: frozenset[str]
    cancelled: frozenset[str]


def select_runs(
    folder: SweepFolder, plan: Plan, ledger: Ledger, scheduler: Scheduler, dropped: Collection[str], *, replace: bool
) -> Selection:
    """The runs to send, after a line that says how many there are and notes that concern the others.

    Args:
        folder: The folder of the sweep, under its submission lock.
        plan: The plan of the complete sweep.
        ledger: The ledger, after interrupted submissions were finished.
        scheduler: The scheduler of the plan's cluster.
        dropped: The submitted runs that the sweep file no longer yields.
        replace: Whether waiting runs whose request differs from the plan's are cancelled, and sent again.

    Raises:
        UserError: A damaged file hides that runs are done.
    """
    planned = [run.run_id for run in plan.runs]
    ask = partial(_ask, folder, plan, scheduler, ledger, dropped)
    states = ask()
    changed = _changed_requests(plan, ledger, states.conclusions)
    selection = _sort(planned, ledger, states.conclusions)
    # With a damaged line, the job or the last state of a run may be missing.
    doubtful = [
        run_id for run_id in planned if run_id in selection.missing and (states.damage or run_id not in ledger.jobs)
    ]
    _check_unfinished(folder, doubtful, states.damage)
    if changed and replace:
        states = _cancel_waiting(scheduler, changed, ask)
        selection = _sort(planned, ledger, states.conclusions)
    for notice in (*states.damage, *states.answers.notices):
        note(notice)
    _note_dropped(dropped, states.conclusions)
    if not replace:
        _note_changed(changed)
    note_timeouts(folder, plan, ledger, selection.missing, states.conclusions)
    missing, cancelled = len(selection.missing), len(selection.cancelled)
    line = f"{plan.sweep_name} on {plan.cluster.name}: {scheduler.action} {missing} of {count_runs(len(planned))}"
    if selection.done or selection.active:
        line += f" ({len(selection.done)} done, {len(selection.active)} queued or running)"
    say(line)
    if cancelled:
        verb, pronoun = ("were", "them") if cancelled > 1 else ("was", "it")
        note(f"{count_runs(cancelled)} {verb} cancelled by sweep cancel; sweep retry sends {pronoun} again")
    return selection


def _ask(folder: SweepFolder, plan: Plan, scheduler: Scheduler, ledger: Ledger, dropped: Collection[str]) -> States:
    if not (ledger.jobs or ledger.damaged_lines):
        return States({})
    submitted = [run.run_id for run in plan.runs if run.run_id in ledger.jobs]
    submitted += [run_id for run_id in dropped if run_id in ledger.jobs]
    return read_states(folder, plan.sweep_name, scheduler, ledger, submitted)


def _sort(planned: Sequence[str], ledger: Ledger, conclusions: Mapping[str, Conclusion]) -> Selection:
    states = {run_id: conclusions[run_id].state for run_id in planned if run_id in conclusions}
    done = {run_id for run_id, state in states.items() if state is State.COMPLETED}
    active = {run_id for run_id, state in states.items() if state.phase is not JobPhase.FINISHED}
    cancelled = (ledger.cancelled & frozenset(planned)) - done - active
    return Selection(
        frozenset(planned) - done - active - cancelled, frozenset(done), frozenset(active), frozenset(cancelled)
    )


def _changed_requests(
    plan: Plan, ledger: Ledger, conclusions: Mapping[str, Conclusion]
) -> dict[str, tuple[Job, list[str]]]:
    """The runs that wait with another request than the plan has, each with its job and what differs."""
    changed = {}
    for group in plan.groups:
        now = request_of(group)
        for run in group.runs:
            conclusion, jobs = conclusions.get(run.run_id), ledger.jobs.get(run.run_id)
            if conclusion is None or not jobs or not conclusion.state.is_pending or jobs[-1].request is None:
                continue
            if differing := _differences(jobs[-1].request, now):
                changed[run.run_id] = (jobs[-1], differing)
    return changed


def _differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What differs between two requests, for a person: ``time 600, now 10``."""
    names = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    if "python" not in before:
        names = [name for name in names if name != "python"]  # not noted by a former release
    return [f"{name} {before.get(name)}, now {now.get(name)}" if name != "setup" else "setup" for name in names]


def _note_changed(changed: Mapping[str, tuple[Job, list[str]]]) -> None:
    if changed:
        differing = dict.fromkeys(text for _, texts in changed.values() for text in texts)
        verb, pronoun = ("wait", "them") if len(changed) > 1 else ("waits", "it")
        text = f"{count_runs(len(changed))} {verb} with another request than the sweep has now"
        note(f"{text} ({'; '.join(differing)}): {list_names(list(changed))}; --replace sends {pronoun} again")


def _cancel_waiting(
    scheduler: Scheduler, changed: Mapping[str, tuple[Job, list[str]]], ask: Callable[[], States]
) -> States:
    """Cancels jobs that wait, and returns the states after that. A job that has started in between continues."""
    scheduler.cancel([job for job, _ in changed.values()], only_pending=True)
    deadline = time.monotonic() + _REPLACE_WAIT_S
    while True:
        states = ask()
        unsettled = [
            run_id for run_id in changed if states.conclusions[run_id].state in (State.PENDING, State.COMPLETING)
        ]
        if not unsettled or time.monotonic() > deadline:
            break
        time.sleep(1)
    replaced = [run_id for run_id in changed if states.conclusions[run_id].state.is_finished]
    kept = [f"{run_id} {states.conclusions[run_id].state}" for run_id in changed if run_id not in replaced]
    if replaced:
        note(f"cancelled {count_runs(len(replaced))} that waited with another request: {list_names(replaced)}")
    if kept:
        note(f"{count_runs(len(kept))} kept the earlier request: {list_names(kept)}")
    return states


def _note_dropped(dropped: Collection[str], conclusions: Mapping[str, Conclusion]) -> None:
    """Prints how many runs are dropped, and how many of them still wait or run."""
    if not dropped:
        return
    verb, pronoun = ("are", "them") if len(dropped) > 1 else ("is", "it")
    note(f"{count_runs(len(dropped))} {verb} no longer in the sweep file; sweep forget removes {pronoun}")
    active = [run_id for run_id in dropped if run_id in conclusions and not conclusions[run_id].state.is_finished]
    if active:
        verb, pronoun = ("still wait or run", "them") if len(active) > 1 else ("still waits or runs", "it")
        names = list_names(sorted(active))
        note(f"{len(active)} of the dropped runs {verb}; sweep cancel --dropped ends {pronoun}: {names}")


def note_timeouts(
    folder: SweepFolder,
    plan: Plan,
    ledger: Ledger,
    missing: Collection[str],
    conclusions: Mapping[str, Conclusion],
) -> None:
    """Warns of runs that would reach the same time limit again: without a checkpoint they start from the beginning.

    Of a user's own script nobody knows whether it has one.
    """
    limits = {
        run.run_id: group.parameters.get("time")
        for group in plan.groups
        for run in group.runs
        if isinstance(run.config, TrainConfig)
    }
    again = []
    for run_id in limits:
        if run_id not in missing or run_id not in conclusions or conclusions[run_id].state is not State.TIMEOUT:
            continue
        request = ledger.jobs[run_id][-1].request or {}
        if request.get("time") == limits[run_id] and not has_checkpoint(folder.run(run_id)):
            again.append(run_id)
    if again:
        verb = "have" if len(again) > 1 else "has"
        text = f"{count_runs(len(again))} {verb} reached the time limit without a checkpoint: {list_names(again)}"
        note(f"{text}; the limit is the same, so raise time under slurm, or set checkpoint_every")


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
