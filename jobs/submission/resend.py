"""Sends runs again on request: from their last checkpoint (retry), or from the beginning (rerun)."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from disttrain.config.command.command_config import CommandConfig, is_command
from disttrain.config.train_config import TrainConfig
from disttrain.errors import UserError
from disttrain.records.lifecycle.attempt_log import ATTEMPTS_NAME
from disttrain.records.record_files import SUMMARY_NAME
from jobs.planning.allocation import Allocation
from jobs.planning.cluster import Cluster
from jobs.planning.expand import RunSpec
from jobs.planning.labels import Variation
from jobs.planning.plan import Plan, make_plan, with_runs
from jobs.planning.request_changes import NO_CHANGES, RequestChanges
from jobs.results.failures.failure_pattern import failure_patterns
from jobs.results.result import Result
from jobs.results.status import read_rows
from jobs.schedulers.states import States, read_states, scheduler_for
from jobs.slurm.states import State
from jobs.storage.code_snapshot import Snapshot
from jobs.storage.job_logs import log_files
from jobs.storage.ledger import Ledger, read_ledger, submission_lock, uncancel
from jobs.storage.run_facts import RunFacts, has_checkpoint, read_facts
from jobs.storage.run_lookup import find_runs, list_names
from jobs.storage.sweep_folder import SweepFolder, prepare_runs, submitted_code
from jobs.submission.failed_runs import ALL_FAILED, FailedRuns
from jobs.submission.launch import send, write_errors
from jobs.submission.messages import note, say
from jobs.submission.run_code import copy_code
from jobs.submission.selection import note_timeouts

_EARLIER = "earlier"  # the folder in that of a run for the files of its earlier results


def resend(
    folder: SweepFolder,
    texts: Sequence[str],
    *,
    from_start: bool,
    only: FailedRuns = ALL_FAILED,
    changes: RequestChanges = NO_CHANGES,
    continues: bool = False,
) -> None:
    """Sends runs of a submitted sweep again, with the requests of its latest submission.

    Args:
        folder: The folder of the sweep.
        texts: What the user typed for each run; nothing for all failed and cancelled runs.
        from_start: Whether they start from the beginning: their files move to ``earlier/<n>/``. If not, they resume
            from their last checkpoint, and none of them may be done.
        only: Which of these runs are sent.
        changes: What they request otherwise. It holds for this submission: request.json stays as it is.
        continues: Whether the runs continue the attempts of the user's latest submission, with its budgets.

    Raises:
        UserError: A run has not ended, or is done and should resume; or the cluster does not accept a change, or the
            scheduler a job.
    """
    folder.require_owner("only its owner can send runs again")
    plan = folder.plan()
    cluster, import_path = folder.read_request()
    cluster = changes.apply(cluster)
    scheduler = scheduler_for(plan.kind, os.environ)
    scheduler.require(cluster.name)
    with submission_lock(folder.path):
        ledger = scheduler.finish_interrupted(folder, read_ledger(folder.path), note)
        run_ids = [run["run_id"] for run in plan.runs]
        states = read_states(folder, plan.sweep, scheduler, ledger, run_ids)
        if states.damage:
            raise UserError("; ".join(states.damage), where=str(folder.path), hint="restore the line first")
        by_run = {run_id: conclusion.state for run_id, conclusion in states.conclusions.items()}
        chosen = _chosen(plan.runs, texts, by_run, from_start=from_start)
        chosen = only.among(folder, chosen, ledger, scheduler, states)
        if not chosen:
            say(f"nothing to send: no run of {plan.sweep} on {plan.cluster} has failed or was cancelled{only}")
            return
        if not from_start:
            _propose(changes, lambda: read_rows(folder, plan.runs, ledger, scheduler, states))
        batches = plans_of(folder, plan.sweep, cluster, chosen, ledger)
        for batch, _ in batches:
            ids = {run.run_id for run in batch.runs}
            note_timeouts(folder, batch, ledger, set() if from_start else ids, states.conclusions)
        kept: dict[str, Path] = {}
        with_changes = f", with {changes}" if str(changes) else ""
        try:
            with write_errors(folder, "nothing was sent; free some space, then try again"):
                code = _code(folder, [batch for batch, _ in batches], import_path, ledger, from_start=from_start)
                if from_start:
                    for run in chosen:
                        run_dir = folder.run(run["run_id"])
                        kept[run["run_id"]] = _next_folder(run_dir)
                        _move_result(run_dir, kept[run["run_id"]])
                prepare_runs(folder, chosen, import_path, code=code, continues=continues)
                if str(changes):
                    for run in chosen:
                        folder.write_request(cluster, import_path, run["run_id"])
                # Runs that failed before, and are not sent again, are no news.
                folder.forget_notifications(["end"] if _stay_failed(states, chosen) else ["first failure", "end"])
                uncancel(folder.path, [run["run_id"] for run in chosen], time.time())
            say(f"{plan.sweep} on {plan.cluster}: sending {len(chosen)} of {len(plan.runs)} runs again{with_changes}")
            for batch, overrides in batches:
                send(folder, batch, scheduler, overrides, _later(changes, from_start=from_start))
        finally:
            _restore_unsent(folder, kept, ledger)


def _code(
    folder: SweepFolder, batches: Sequence[Plan], import_path: Sequence[str], ledger: Ledger, *, from_start: bool
) -> dict[str, Snapshot]:
    """The copy of each run. One that resumes has begun with its code; any other gets what the user has now."""
    run_ids = [run.run_id for batch in batches for run in batch.runs]
    resumed = [] if from_start else [run_id for run_id in run_ids if _has_started(folder, run_id, ledger)]
    new = set(run_ids).difference(resumed)
    present = copy_code(folder, [with_runs(batch, new) for batch in batches], import_path)
    return {**submitted_code(folder, resumed), **present}


def _has_started(folder: SweepFolder, run_id: str, ledger: Ledger) -> bool:
    """Whether a job of the run has started: each writes a log, and then its attempts."""
    run_dir, jobs = folder.run(run_id), ledger.jobs.get(run_id, ())
    if has_checkpoint(run_dir) or (run_dir / ATTEMPTS_NAME).exists() or read_facts(run_dir) != RunFacts():
        return True
    return any(log_files(folder.logs, job.job_id, 0) for job in jobs)


def _propose(changes: RequestChanges, rows: Callable[[], Sequence[Result]]) -> None:
    """Says where the failures of the sweep gather, unless the user leaves out a node already."""
    if not changes.exclude:
        for line in failure_patterns(rows()):
            note(line)


def _stay_failed(states: States, chosen: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a run has failed and is not among those that are sent again."""
    sent = {run["run_id"] for run in chosen}
    ended = {run_id for run_id, conclusion in states.conclusions.items() if conclusion.state.is_finished}
    return any(not states.conclusions[run_id].state.is_success for run_id in ended - sent)


def _later(changes: RequestChanges, *, from_start: bool) -> str:
    """What sends the runs that Slurm does not accept now."""
    if from_start:
        return "sweep rerun sends {} later, and the earlier result stays until then"
    if str(changes):
        return "sweep retry with the same changes sends {} later"
    return "sweep submit sends {} later"


def plans_of(
    folder: SweepFolder, sweep_name: str, cluster: Cluster, runs: Sequence[Mapping[str, Any]], ledger: Ledger
) -> list[tuple[Plan, Mapping[str, str]]]:
    """The plans of these runs, one for each ``--set`` of their latest submissions, with which the file yields them.

    Raises:
        UserError: A run is of another release.
    """
    try:
        return [
            (
                make_plan(sweep_name, [run_spec(run, n) for n, run in enumerate(members)], cluster, folder.path),
                overrides,
            )
            for overrides, members in _by_overrides(runs, ledger)
        ]
    except TypeError as error:
        hint = "sweep submit plans failed runs anew; sweep forget RUN removes a run with all its files"
        raise UserError(
            f"the runs were planned by another release: {error}", where=str(folder.path), hint=hint
        ) from None


def _restore_unsent(folder: SweepFolder, kept: Mapping[str, Path], before: Ledger) -> None:
    """Moves the results back of runs that were not sent, also after an interrupted move: they are still the latest."""
    now = read_ledger(folder.path)
    for run_id, earlier in kept.items():
        is_sent = run_id in now.unconfirmed or len(now.jobs.get(run_id, ())) > len(before.jobs.get(run_id, ()))
        if is_sent or not earlier.is_dir():
            continue
        run_dir = folder.run(run_id)
        try:
            for path in _summary_last(earlier):
                path.replace(run_dir / path.name)
            earlier.rmdir()
        except OSError as error:
            note(f"the earlier result of {run_id} is, in part, in {str(earlier)!r}: {error.strerror}")


def _chosen(
    planned: Sequence[Mapping[str, Any]], texts: Sequence[str], states: Mapping[str, State], *, from_start: bool
) -> list[Mapping[str, Any]]:
    """The runs to send."""
    if not texts:
        return [
            run
            for run in planned
            if not run.get("dropped") and states[run["run_id"]].is_finished and not states[run["run_id"]].is_success
        ]
    runs = find_runs(planned, texts)
    variation = Variation(planned)
    unsent = [variation.name(run) for run in runs if states[run["run_id"]] is State.NOT_SUBMITTED]
    if unsent:
        raise UserError(f"never submitted: {list_names(unsent)}", hint="sweep submit sends them")
    active = [f"{variation.name(run)} {states[run['run_id']]}" for run in runs if not states[run["run_id"]].is_finished]
    if active:
        hint = "wait until they end, or end them with sweep cancel"
        raise UserError(f"runs that have not ended cannot be sent again: {list_names(active)}", hint=hint)
    done = [variation.name(run) for run in runs if states[run["run_id"]].is_success]
    if done and not from_start:
        raise UserError(
            f"sweep retry is for failed and cancelled runs; done: {list_names(done)}",
            hint="sweep rerun sends a run again although it is done",
        )
    return runs


def _next_folder(run_dir: Path) -> Path:
    """The folder for the files of the present result, ``earlier/<n>/`` with n from 1."""
    earlier = run_dir / _EARLIER
    names = [path.name for path in earlier.iterdir()] if earlier.is_dir() else []
    return earlier / str(max((int(name) for name in names if name.isdecimal()), default=0) + 1)


def _move_result(run_dir: Path, target: Path) -> None:
    """Moves all files of a run to a folder of ``earlier/``. The summary is last: until then the run counts as done."""
    target.mkdir(parents=True)
    for path in _summary_last(run_dir):
        path.rename(target / path.name)


def _summary_last(folder: Path) -> list[Path]:
    """The files of a result, without earlier ones."""
    files = [path for path in folder.iterdir() if path.name != _EARLIER]
    return sorted(files, key=lambda path: path.name == SUMMARY_NAME)


def _by_overrides(
    runs: Sequence[Mapping[str, Any]], ledger: Ledger
) -> list[tuple[Mapping[str, str], list[Mapping[str, Any]]]]:
    """The runs by the ``--set`` of their latest submission: only with it the sweep file yields them."""
    groups: dict[frozenset[tuple[str, str]], list[Mapping[str, Any]]] = {}
    known = ledger.overrides()
    for run in runs:
        groups.setdefault(frozenset((known.get(run["run_id"]) or {}).items()), []).append(run)
    return [(dict(overrides), members) for overrides, members in groups.items()]


def run_spec(run: Mapping[str, Any], index: int) -> RunSpec:
    """A run of plan.json as the plan has it."""
    return RunSpec(
        run_id=run["run_id"],
        allocation=Allocation.parse(run["allocation"]),
        config=CommandConfig.from_run(run) if is_command(run) else TrainConfig(**run["train"]),
        point=run["point"],
        asked=run.get("asked") or {},
        index=index,
    )
