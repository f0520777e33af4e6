"""The attempts of a run: which steps each did, what was lost, and the GPU-hours that gave no step of the result."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace

import pytest

from disttrain.records.lifecycle.attempt_log import Attempt, log_end, log_start
from jobs.results.run_attempts import RunAttempt, run_attempts, wasted_hours
from jobs.results.tables import results_report
from jobs.slurm.attempts import AccountingRow
from jobs.slurm.states import State
from jobs.storage import ledger
from jobs.storage.sweep_folder import SweepFolder
from tests.jobs.command import Sweep
from tests.jobs.results.rows import make_result

# Two GPUs for an hour each: 2 GPU-hours.
FIRST = AccountingRow(
    "7_0", "8", State.REQUEUED, submit_s=1000, start_s=1060, end_s=4660, elapsed_s=3600, alloc_gpus=2, node_list="n1"
)
SECOND = replace(FIRST, state=State.COMPLETED, submit_s=4660, start_s=4700, end_s=8300)
STOPPED = Attempt("8", 0, 1070.0, "preemption", 100)
RESUMED = Attempt("8", 75, 4710.0)


def listed(
    rows: Sequence[AccountingRow], logged: Sequence[Attempt], state: State = State.COMPLETED
) -> tuple[RunAttempt, ...]:
    return run_attempts(rows, logged, state, planned_gpus=2)


def test_steps_done_again_are_lost() -> None:
    """The first attempt did 100 steps, and the second continued after step 75: a quarter of 2 GPU-hours."""
    first, second = listed([SECOND, FIRST], [STOPPED, RESUMED])
    assert (first.first_step, first.last_step, first.lost_steps, first.wasted_share) == (0, 100, 25, 0.25)
    assert (second.first_step, second.lost_steps, second.wasted_share) == (75, 0, 0.0)
    assert wasted_hours([first, second]) == 0.5


@pytest.mark.parametrize(
    ("logged", "state", "wasted"),
    [
        pytest.param([STOPPED, replace(RESUMED, first_step=100)], State.COMPLETED, 0.0, id="saved at its end"),
        pytest.param([STOPPED, replace(RESUMED, first_step=0)], State.COMPLETED, 2.0, id="began again"),
        pytest.param([replace(STOPPED, last_step=None), RESUMED], State.COMPLETED, None, id="killed, checkpoint"),
        pytest.param(
            [replace(STOPPED, last_step=None), replace(RESUMED, first_step=0)],
            State.COMPLETED, 2.0, id="killed, without a checkpoint",
        ),
        pytest.param([replace(RESUMED, first_step=0)], State.COMPLETED, 2.0, id="the first made no step"),
        pytest.param([RESUMED], State.COMPLETED, None, id="the first used another budget"),
        pytest.param([], State.COMPLETED, None, id="nothing logged"),
        pytest.param([STOPPED, RESUMED], State.FAILED, 4.0, id="no result"),
        pytest.param([STOPPED, RESUMED], State.RUNNING, 0.5, id="runs"),
    ],
)  # fmt: skip
def test_hours_without_a_step_of_the_result(logged: list[Attempt], state: State, wasted: float | None) -> None:
    assert wasted_hours(listed([FIRST, SECOND], logged, state)) == wasted


def test_one_attempt_wastes_all_or_nothing() -> None:
    assert wasted_hours(listed([FIRST], [], State.COMPLETED)) == 0.0
    assert wasted_hours(listed([FIRST], [], State.TIMEOUT)) == 2.0
    assert wasted_hours(listed([replace(FIRST, start_s=None, elapsed_s=None)], [], State.CANCELLED)) == 0.0


def test_attempts_of_two_jobs_of_one_run() -> None:
    """Duplicates count: both had nodes."""
    other = replace(SECOND, job_id="9", job_id_raw="9")
    listing = listed([FIRST, other], [STOPPED, replace(RESUMED, job_id="9", first_step=100)])
    assert [(attempt.row.job_id, attempt.first_step, attempt.gpu_hours) for attempt in listing] == [
        ("7_0", 0, 2.0), ("9", 100, 2.0),
    ]  # fmt: skip


def test_the_table_says_what_was_wasted() -> None:
    rows = [make_result(state="COMPLETED", gpu_hours=4.0, gpu_hours_wasted=wasted) for wasted in (0.5, 0.0, None)]
    assert "gpu_hours has 0.5 h of attempts that failed, or whose steps were done again" in [
        *results_report(rows, "s", None)
    ]
    assert not [part for part in results_report(rows[1:], "s", None) if "gpu_hours has" in str(part)]


@pytest.mark.process
def test_the_command_lists_every_attempt(sweep: Sweep, submitted: SweepFolder) -> None:
    run_id = submitted.planned_runs()[1]["run_id"]
    job_id = ledger.read_ledger(submitted.path).jobs[run_id][-1].job_id
    row = replace(FIRST, job_id=job_id, job_id_raw=None, state=State.FAILED, exit_code=1)
    ledger.append_lines(submitted.accounting_file, [json.dumps(row.to_json())])
    log_start(submitted.run(run_id), Attempt(job_id, 0, 1070.0))
    log_end(submitted.run(run_id), "unknown", 9)
    (listed,) = json.loads(sweep("attempts", "2x1", "--json").out)
    assert listed == {
        "number": 1, "job_id": job_id, "state": "FAILED", "submit_s": 1000, "start_s": 1060, "queue_wait_s": 60,
        "elapsed_s": 3600, "node_list": "n1", "gpu_hours": 2.0, "exit_code": 1, "reason": None, "first_step": 0,
        "last_step": 9, "lost_steps": 0,
    }  # fmt: skip
    header, _, line = sweep("attempts", "2x1").out.strip().splitlines()
    assert header.split()[:4] == ["number", "job_id", "state", "submit"]
    assert line.split()[3:5] == ["1970-01-01", "00:16:40"]


@pytest.mark.process
def test_a_run_without_attempts_and_an_unknown_run(sweep: Sweep, submitted: SweepFolder) -> None:
    assert "no run of this sweep is 'other'" in sweep("attempts", "other").err
    assert sweep("attempts", "other").exit_code == 2
