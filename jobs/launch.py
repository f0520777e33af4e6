"""From a plan to its jobs: finds what is neither done nor under way, lays down its files, sends it, records it."""

from __future__ import annotations

import dataclasses
import os
import sys
import time
from collections.abc import Callable

from jobs.cluster import LOCAL
from jobs.folder import SweepFolder, prepare
from jobs.ledger import read_ledger, submission_lock
from jobs.localqueue import send_to_local
from jobs.plan import JobGroup, Plan, plan_json, run_json, with_runs
from jobs.slurm_states import Phase, State
from jobs.status import Status, read_status
from jobs.submit import require_slurm, run_in_debugger, scratch_folder, send_to_slurm
from jobs.tables import count_runs


def launch(plan: Plan, sweep_text: str, *, max_ranks: int | None, tick: Callable[[], None] | None = None) -> None:
    """Sends the runs of the plan that are neither done nor under way.

    Args:
        plan: The whole sweep on one cluster.
        sweep_text: Its YAML.
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
        missing = with_runs(plan, _missing(folder, plan))
        prepare(folder, sweep_text, plan_json(plan), [run_json(run) for run in missing.runs])
        if plan.cluster_name != LOCAL:
            send_to_slurm(missing, time.time, _tell)
        elif missing.runs:
            queue = send_to_local(missing, max_ranks, time.time, here=tick is not None)
    if queue and tick:
        queue.run(tick)


def _tell(group: JobGroup, job_id: str) -> None:
    print(f"  {group.allocation}: {count_runs(len(group.runs))} as job {job_id}", flush=True)


def _missing(folder: SweepFolder, plan: Plan) -> frozenset[str]:
    sent = read_ledger(folder.path).jobs
    status = read_status(folder, os.environ) if sent else Status((), ())
    for notice in status.notices:
        print(f"note: {notice}", file=sys.stderr)
    known = {result.run_id: result for result in status.results}
    wanted = [run.run_id for run in plan.runs]
    done = {run_id for run_id in wanted if run_id in sent and known[run_id].state == State.COMPLETED}
    under_way = {run_id for run_id in wanted if run_id in sent and known[run_id].phase is not Phase.FINISHED}
    missing = frozenset(wanted) - done - under_way
    rest = f" ({len(done)} done, {len(under_way)} under way)" if done or under_way else ""
    print(
        f"{plan.sweep_name} on {plan.cluster_name}: sending {len(missing)} of {count_runs(len(wanted))}{rest}",
        flush=True,
    )
    return missing


def debug(plan: Plan, sweep_text: str) -> None:
    """Runs every run of the plan in this process, as one rank each, in a scratch folder."""
    scratch = dataclasses.replace(plan, folder=scratch_folder(plan.sweep_name))
    folder = SweepFolder(scratch.folder)
    prepare(folder, sweep_text, plan_json(scratch), [run_json(run) for run in scratch.runs])
    print(f"debug: {count_runs(len(scratch.runs))} as one rank each, in {scratch.folder}")
    run_in_debugger(scratch, scratch.runs)
