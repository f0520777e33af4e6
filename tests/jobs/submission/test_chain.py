"""The next job of a run, which its present job submits."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from disttrain.errors import UserError
from disttrain.records.lifecycle.attempt_log import Attempt, NotResumed, log_end, log_start, read_attempts
from disttrain.records.record_files import write_failure
from jobs.planning.cluster import Cluster
from jobs.planning.cluster_profile import ClusterProfile
from jobs.planning.request_changes import RequestChanges
from jobs.slurm.states import State
from jobs.storage.ledger import read_ledger
from jobs.storage.sweep_folder import SweepFolder
from jobs.submission.cancellation import cancel_runs
from jobs.submission.chain import resume_stopped, send_next
from jobs.submission.launch import launch
from jobs.submission.resend import resend
from tests.jobs.submission.fake_slurm import LOADED, Slurm, plan_of

pytestmark = pytest.mark.process


@pytest.fixture
def folder(slurm: Slurm, tmp_path: Path) -> SweepFolder:
    """A sweep of four runs that are sent: jobs 1_0, 1_1, 2_0, 2_1. The first runs."""
    plan = plan_of(tmp_path)
    launch(plan, LOADED, max_ranks=None)
    slurm.states["1_0"] = State.RUNNING
    return SweepFolder(plan.folder)


def first_run(folder: SweepFolder) -> str:
    run_id: str = folder.plan().runs[0]["run_id"]
    return run_id


def test_the_next_job_waits_for_this_one(slurm: Slurm, folder: SweepFolder) -> None:
    run_id = first_run(folder)
    log_start(folder.run(run_id), Attempt("1_0", 0, 0.0))
    before = read_ledger(folder.path).jobs[run_id]
    send_next(folder.run(run_id), "1_0")
    assert slurm.submitted[2:] == [[run_id]]
    assert slurm.groups[-1].parameters["additional_parameters"]["dependency"] == "afterany:1_0"
    jobs = read_ledger(folder.path).jobs[run_id]
    assert [job.job_id for job in jobs] == ["1_0", "3_0"]
    assert jobs[-1].request == before[-1].request, "a waiting job is not taken for one with another request"
    assert len(read_attempts(folder.run(run_id))) == 1, "the budgets continue"
    # Nothing sends the run again while its next job waits.
    launch(plan_of(folder.path.parents[1]), LOADED, max_ranks=None)
    assert len(slurm.submitted) == 3


@pytest.mark.parametrize("what", ["cancelled", "sent again", "forgotten"])
def test_only_the_latest_job_of_a_run_is_followed(what: str, slurm: Slurm, folder: SweepFolder) -> None:
    run_id, job_id = first_run(folder), "1_0"
    if what == "cancelled":
        cancel_runs(folder, [run for run in folder.plan().runs if run["run_id"] == run_id])
    elif what == "sent again":
        job_id = "0_0"
    else:
        folder.remove_from_plan([run_id])
    with pytest.raises(UserError, match="the run was cancelled, forgotten or sent again in the meantime"):
        send_next(folder.run(run_id), job_id)
    assert len(slurm.submitted) == 2


def test_the_changes_of_a_retry_hold_for_the_next_jobs(slurm: Slurm, folder: SweepFolder) -> None:
    run_id = first_run(folder)
    slurm.states["1_0"] = State.FAILED
    resend(folder, [run_id], from_start=False, changes=RequestChanges(("node17",), time="2:00:00"))
    (job_id,) = [job.job_id for job in read_ledger(folder.path).jobs[run_id][-1:]]
    slurm.states[job_id] = State.RUNNING
    send_next(folder.run(run_id), job_id)
    parameters = slurm.groups[-1].parameters
    assert parameters["time"] == 120
    assert parameters["additional_parameters"]["exclude"] == "node17"
    # The next submission of the user is without them.
    slurm.states = dict.fromkeys(slurm.states, State.FAILED)
    resend(folder, [run_id], from_start=False)
    assert slurm.groups[-1].parameters["time"] == 60


@pytest.mark.parametrize("requeue", ["chain", "off"])
def test_the_login_node_sends_what_a_node_without_sbatch_could_not(requeue: str, slurm: Slurm, tmp_path: Path) -> None:
    profile = ClusterProfile.model_validate({"requeue": requeue, "max_timeouts": 1})
    plan = dataclasses.replace(plan_of(tmp_path), cluster=Cluster("site", "slurm", profile))
    launch(plan, LOADED, max_ranks=None)
    folder = SweepFolder(plan.folder)
    run_dir, other = (folder.run(run.run_id) for run in plan.runs[:2])
    slurm.states = dict.fromkeys(slurm.states, State.FAILED)

    def stop(step: int) -> None:
        log_start(run_dir, Attempt("1_0", step - 10, 0.0))
        log_end(run_dir, "time limit", step)
        (run_dir / "checkpoints").mkdir(exist_ok=True)
        (run_dir / "checkpoints" / f"attempt-00001-step-{step:09d}.json").touch()
        write_failure(run_dir, 0, NotResumed("time limit: stopped after step 10; ...: sbatch: No such file"))

    stop(10)
    write_failure(other, 0, ValueError("its own error"))
    assert resume_stopped(folder) == (requeue == "chain")
    if requeue == "chain":
        assert slurm.submitted[2:] == [[run_dir.name]]
        assert not resume_stopped(folder), "it waits"
        slurm.states = dict.fromkeys(slurm.states, State.FAILED)
        stop(20)
        assert not resume_stopped(folder), "its second time limit is over the budget"
