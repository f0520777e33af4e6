"""Attempts and their history: identity, derived quantities, and rows that sacct no longer lists."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.slurm.attempts import AccountingRow, AttemptKey, attempts_by_job, merge_history
from jobs.slurm.states import State

PENDING = AccountingRow(job_id="7_0", state=State.PENDING, submit_s=1000, nodes=2, reason="JobHeldUser")
RUNNING = replace(
    PENDING, state=State.RUNNING, job_id_raw="8", start_s=1060, elapsed_s=30, node_list="n[1-2]", alloc_gpus=4
)
DONE = replace(
    RUNNING, state=State.FAILED, end_s=4660, elapsed_s=3600, max_rss_bytes=4096, exit_code=1, out_of_memory=True
)
REQUEUED = replace(DONE, state=State.REQUEUED, exit_code=None, out_of_memory=False)
AGAIN = replace(PENDING, submit_s=5000)
OTHER = replace(PENDING, job_id="7_1")


def test_derived_quantities() -> None:
    assert (PENDING.key, PENDING.queue_wait_s, PENDING.gpu_hours) == (AttemptKey("7_0", 1000), None, 0.0)
    assert (DONE.key, DONE.queue_wait_s, DONE.gpu_hours) == (AttemptKey("7_0", 1000), 60, 4.0)
    assert replace(DONE, alloc_gpus=None).gpu_hours is None
    assert replace(DONE, submit_s=None).queue_wait_s is None


def test_a_waiting_attempt_hides_no_gpus() -> None:
    """Before its start it has no GPUs, also at a site that accounts them."""
    assert [row.counts_gpus for row in (PENDING, DONE, replace(DONE, alloc_gpus=None))] == [True, True, False]


def test_waits_and_run_times_add_up() -> None:
    second = replace(DONE, submit_s=4660, eligible_s=4781, start_s=4800, end_s=5000, elapsed_s=200)
    parts = [part for row in (DONE, second) for part in (row.queue_wait_s, row.elapsed_s)]
    assert sum(part or 0 for part in parts) == 5000 - 1000


@given(
    st.builds(
        AccountingRow,
        job_id=st.from_regex(r"[0-9]{1,8}(_[0-9]{1,3})?", fullmatch=True),
        state=st.sampled_from(State),
        submit_s=st.none() | st.integers(0, 2**40),
        job_name=st.none() | st.text(),
    )
)
def test_json_round_trip_of_a_row(row: AccountingRow) -> None:
    assert AccountingRow.from_json(json.loads(json.dumps(row.to_json()))) == row


def test_reads_rows_of_other_versions() -> None:
    assert AccountingRow.from_json({"job_id": "7", "state": "HIBERNATING", "carbon_g": 3}) == AccountingRow(
        job_id="7", state=State.UNKNOWN
    )


def test_orders_attempts_by_submission() -> None:
    rows = [AGAIN, OTHER, REQUEUED]
    assert attempts_by_job(rows) == {"7_0": (REQUEUED, AGAIN), "7_1": (OTHER,)}


def test_requeued_row_without_successor_is_pending() -> None:
    assert attempts_by_job([REQUEUED])["7_0"][-1].state.is_pending


@pytest.mark.parametrize(
    ("old", "new", "merged"),
    [
        pytest.param([PENDING], [RUNNING], [RUNNING], id="started"),
        pytest.param([RUNNING], [DONE], [DONE], id="ended"),
        pytest.param([RUNNING], [REQUEUED, AGAIN], [REQUEUED, AGAIN], id="requeued"),
        pytest.param([DONE], [], [DONE], id="job purged"),
        pytest.param(
            [DONE],
            [replace(DONE, max_rss_bytes=None, out_of_memory=False)],
            [DONE],
            id="steps purged",
        ),
        pytest.param(
            [DONE], [AccountingRow("7_0", state=State.FAILED, submit_s=1000, start_s=1060)], [DONE], id="poorer"
        ),
        pytest.param([DONE], [replace(DONE, state=State.UNKNOWN)], [DONE], id="no state"),
        pytest.param(
            [DONE],
            [replace(DONE, state=State.UNKNOWN, unknown_state="HIBERNATING")],
            [replace(DONE, state=State.UNKNOWN, unknown_state="HIBERNATING")],
            id="unknown state",
        ),
        pytest.param([RUNNING], [PENDING], [RUNNING], id="lagging record"),
        pytest.param(
            [RUNNING],
            [replace(PENDING, state=State.CANCELLED, end_s=1070)],
            [RUNNING],
            id="lagging record cancelled",
        ),
        pytest.param(
            [replace(PENDING, state=State.CANCELLED, end_s=1070)],
            [RUNNING],
            [RUNNING],
            id="cancelled record first",
        ),
        pytest.param(
            [PENDING],
            [replace(PENDING, reason=None, eligible_s=2000)],
            [replace(PENDING, reason=None, eligible_s=2000)],
            id="still pending for another reason",
        ),
        pytest.param([], [OTHER, DONE], [OTHER, DONE], id="no history"),
    ],
)
def test_merge_history(old: list[AccountingRow], new: list[AccountingRow], merged: list[AccountingRow]) -> None:
    assert merge_history(old, new) == tuple(merged)


@given(st.lists(st.sampled_from([PENDING, RUNNING, DONE, REQUEUED, AGAIN]), max_size=6))
def test_merge_history_is_idempotent(rows: list[AccountingRow]) -> None:
    once = merge_history((), rows)
    assert merge_history(once, once) == once
    assert len({row.key for row in once}) == len(once)
