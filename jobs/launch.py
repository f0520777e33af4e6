"""From a plan to its jobs: finds what is neither done nor under way, lays down its files, sends it, records it."""

from __future__ import annotations

import dataclasses
import os
import sys
import time
from collections.abc import Callable, Collection

from disttrain.config.train_config import LINK, PATH_FIELDS
from disttrain.errors import UserError
from jobs.local.debug import run_in_debugger, scratch_folder
from jobs.local.local_queue import send_to_local
from jobs.planning.cluster_profile import LOCAL
from jobs.planning.plan import JobGroup, Plan, count_runs, plan_json, run_json, with_runs
from jobs.planning.sweep_file import Sweep
from jobs.results.status import Status, read_status
from jobs.slurm.sacct import AccountingUnavailable, queued_jobs
from jobs.slurm.states import JobPhase, State
from jobs.slurm.submit import require_slurm, send_to_slurm
from jobs.storage.ledger import Ledger, read_ledger, submission_lock
from jobs.storage.sweep_folder import SweepFolder, prepare


def launch(plan: Plan, sweep: Sweep, *, max_ranks: int | None, tick: Callable[[], None] | None = None) -> None:
    """Sends the runs of the plan that are neither done nor under way.

    Args:
        plan: The whole sweep on one cluster.
        sweep: What it was made of.
        max_ranks: Of the local executor at once.
        tick: Given: works through a local queue before it returns, and calls it meanwhile.

    Raises:
        UserError: Another submission of the sweep is at work, or the scheduler refuses.
    """
    folder = SweepFolder(plan.folder)
    queue = None
    if plan.cluster_name != LOCAL:
        require_slurm(plan.cluster_name)
    folder.path.mkdir(parents=True, exist_ok=True)
    with submission_lock(folder.path):
        ledger = read_ledger(folder.path)
        _check_same_data(folder, plan, ledger)
        if plan.cluster_name != LOCAL:
            _check_broken_off(folder, ledger)
        missing = with_runs(plan, _missing(folder, plan, ledger))
        _prepare(folder, sweep, plan, missing, {*ledger.jobs, *ledger.unconfirmed})
        if plan.cluster_name != LOCAL:
            send_to_slurm(missing, time.time, _tell)
        elif missing.runs:
            queue = send_to_local(missing, max_ranks, time.time, here=tick is not None)
    if queue and tick:
        queue.run(tick)


def _prepare(folder: SweepFolder, sweep: Sweep, plan: Plan, missing: Plan, sent: Collection[str]) -> None:
    runs = [run_json(run) for run in missing.runs]
    # A family of the user's own lies beside the YAML that names it, or where the command is given.
    prepare(folder, sweep.document.text, plan_json(plan), runs, sent, (sweep.folder, os.getcwd()))


def _tell(group: JobGroup, job_id: str) -> None:
    print(f"  {group.allocation}: {count_runs(len(group.runs))} as job {job_id}", flush=True)


def _check_same_data(folder: SweepFolder, plan: Plan, ledger: Ledger) -> None:
    """Checks that runs of the same id are the same runs.

    An id does not depend on where the sweep's file lies, and so neither on which of two folders ./data is.
    """
    earlier = {run["run_id"]: run["train"] for run in folder.planned_runs() if run["run_id"] in ledger.jobs}
    for run in plan.runs:
        for field in PATH_FIELDS if run.run_id in earlier else ():
            before, now = earlier[run.run_id].get(field), getattr(run.config, field)
            if before != now:
                raise UserError(
                    f"{plan.sweep_name!r} was submitted with {field} {before!r}, this one has {now!r}",
                    where=str(folder.path),
                    hint="give this sweep another name, or another --root",
                )


def _check_broken_off(folder: SweepFolder, ledger: Ledger) -> None:
    """Checks that a submission that was killed half-way has left no jobs that the ledger does not know."""
    if not ledger.unconfirmed:
        return
    try:
        queued = queued_jobs(folder.sweep_name, environ=os.environ)
    except AccountingUnavailable as error:
        raise UserError(f"a submission broke off, and what of it is queued cannot be asked: {error}") from None
    unknown = sorted(queued - {job.job_id for job in ledger.all_jobs()})
    if unknown:
        raise UserError(
            f"a submission broke off and left jobs that would run twice: {', '.join(unknown)}",
            where=str(folder.path),
            hint=f"scancel {' '.join(unknown)}, or wait for their end; then submit again",
        )


def _missing(folder: SweepFolder, plan: Plan, ledger: Ledger) -> frozenset[str]:
    sent = ledger.jobs
    status = read_status(folder, os.environ) if sent else Status((), ())
    for notice in status.notices:
        print(f"note: {notice}", file=sys.stderr)
    known = {result.run_id: result for result in status.results}
    wanted = [run.run_id for run in plan.runs]
    done = {run_id for run_id in wanted if run_id in sent and known[run_id].state == State.COMPLETED}
    under_way = {run_id for run_id in wanted if run_id in sent and known[run_id].phase is not JobPhase.FINISHED}
    missing = frozenset(wanted) - done - under_way
    rest = f" ({len(done)} done, {len(under_way)} under way)" if done or under_way else ""
    print(
        f"{plan.sweep_name} on {plan.cluster_name}: sending {len(missing)} of {count_runs(len(wanted))}{rest}",
        flush=True,
    )
    return missing


def debug(plan: Plan, sweep: Sweep) -> None:
    """Runs every run of the plan in this process, as one rank each, in a scratch folder; one rank has no link."""
    trained = with_runs(plan, {run.run_id for run in plan.runs if run.config.model != LINK})
    scratch = dataclasses.replace(trained, folder=scratch_folder(plan.sweep_name))
    folder = SweepFolder(scratch.folder)
    _prepare(folder, sweep, scratch, scratch, ())
    print(f"debug: {count_runs(len(scratch.runs))} as one rank each, in {scratch.folder}")
    run_in_debugger(scratch, scratch.runs)
