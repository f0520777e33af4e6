"""The next job of a run, which its present job submits."""

from __future__ import annotations

from pathlib import Path

import pytest

from disttrain.errors import UserError
from disttrain.records.lifecycle.attempt_log import Attempt, log_start, read_attempts
from jobs.slurm.states import State
from jobs.storage.ledger import read_ledger
from jobs.storage.sweep_folder import SweepFolder
from jobs.submission.cancellation import cancel_runs
from jobs.submission.chain import send_next
from jobs.submission.launch import launch
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
