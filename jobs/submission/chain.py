"""Submits the job that follows this one, from a compute node: python -m jobs.submission.chain RUN_FOLDER JOB_ID.

Where compute nodes have no sbatch, `sweep submit --wait` does it.
"""

from __future__ import annotations

import dataclasses
import os
import sys
from pathlib import Path

from disttrain.errors import UserError
from disttrain.records.lifecycle.attempt_log import not_resumed_cause, read_attempts, steps_done, why_not_again
from jobs.planning.cluster_profile import ClusterProfile
from jobs.planning.plan import Plan
from jobs.planning.sbatch_options import with_options
from jobs.results.run_records import read_run
from jobs.schedulers.states import scheduler_for
from jobs.storage.ledger import read_ledger, submission_lock
from jobs.storage.sweep_folder import SweepFolder
from jobs.submission.launch import send
from jobs.submission.resend import plans_of, resend

# Tasks of an array reach their time limits together, and submit one after the other.
_LOCK_WAIT_S = 60.0


def send_next(run_dir: Path, job_id: str) -> None:
    """Submits the next job of a run, which starts when this one has ended, with the request of the latest submission.

    Args:
        run_dir: The folder of the run.
        job_id: The id of this job.

    Raises:
        UserError: The run was cancelled, or sent again in the meantime, or Slurm refuses the job.
    """
    folder, run_id = SweepFolder(run_dir.parent.parent), run_dir.name
    with submission_lock(folder.path, _LOCK_WAIT_S):
        _send_next(folder, run_id, job_id)


def _send_next(folder: SweepFolder, run_id: str, job_id: str) -> None:
    stored, ledger = folder.plan(), read_ledger(folder.path)
    runs = [run for run in stored.runs if run["run_id"] == run_id]
    jobs = ledger.jobs.get(run_id, ())
    if not runs or run_id in ledger.cancelled or not jobs or jobs[-1].job_id != job_id:
        raise UserError("the run was cancelled, forgotten or sent again in the meantime")
    cluster, _ = folder.read_request(run_id)
    scheduler = scheduler_for(stored.kind, os.environ)
    for plan, overrides in plans_of(folder, stored.sweep, cluster, runs, ledger):
        sent = send(folder, _following(plan, job_id), scheduler, overrides)
        if sent.unsent:
            raise UserError(f"Slurm accepts no more jobs ({sent.reason})")


def resume_stopped(folder: SweepFolder) -> bool:
    """Sends the runs of a chain whose job could not submit the next one: sbatch is not on its node, or refused it.

    Returns:
        Whether there were any. A run whose budget is used, or that makes no progress, is not sent.
    """
    cluster, _ = folder.read_request()
    if cluster.profile is None or cluster.profile.requeue != "chain":
        return False
    stopped = [run["run_id"] for run in folder.plan().runs if _is_stopped(folder.run(run["run_id"]), cluster.profile)]
    if stopped:
        resend(folder, stopped, from_start=False, continues=True)
    return bool(stopped)


def _is_stopped(run_dir: Path, profile: ClusterProfile) -> bool:
    """Whether a run has stopped at a warning and could not start again."""
    attempts = read_attempts(run_dir)
    if not attempts or attempts[-1].last_step is None or attempts[-1].cause == "termination":
        return False
    if not any(map(not_resumed_cause, read_run(run_dir).failures)):
        return False
    return why_not_again(attempts, steps_done(run_dir), profile.resume_policy) is None


def _following(plan: Plan, job_id: str) -> Plan:
    """The plan with jobs that start only after the end of another one."""
    dependency = {"dependency": f"afterany:{job_id}"}
    groups = [
        dataclasses.replace(group, parameters=with_options(group.parameters, dependency)) for group in plan.groups
    ]
    return dataclasses.replace(plan, groups=tuple(groups))


def main() -> None:
    try:
        send_next(Path(sys.argv[1]), sys.argv[2])
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
