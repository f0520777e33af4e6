"""The parser of sacct's table, on outputs recorded from Slurm 22.05 and on handmade ones in data/sacct."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.slurm.attempts import AccountingRow
from jobs.slurm.sacct import FIELDS
from jobs.slurm.sacct_table import SEPARATOR, AccountingUnavailable, parse_sacct
from jobs.slurm.states import State

DATA = Path(__file__).parents[1] / "data" / "sacct"


def recorded(name: str) -> tuple[AccountingRow, ...]:
    return parse_sacct((DATA / f"{name}.txt").read_text(encoding="utf-8"))


def table(*rows: Mapping[str, str]) -> str:
    names = list(dict.fromkeys(name for row in rows for name in row))
    lines = [names, *([row.get(name, "") for name in names] for row in rows)]
    return "".join(SEPARATOR.join(line) + "\n" for line in lines)


ARRAY = AccountingRow(
    job_id="3_0",
    job_id_raw="7",
    state=State.COMPLETED,
    submit_s=1795507824,
    eligible_s=1795507824,
    start_s=1795507841,
    end_s=1795507849,
    elapsed_s=8,
    timelimit_min=5,
    partition="gpu",
    nodes=1,
    node_list="node1",
    alloc_cpus=1,
    alloc_gpus=1,
    max_rss_bytes=11030528,
    exit_code=0,
    derived_exit_code=0,
    job_name="arr|ay",
)

FIRST_ATTEMPT = AccountingRow(
    job_id="4",
    job_id_raw="4",
    state=State.REQUEUED,
    submit_s=1795507824,
    eligible_s=1795507824,
    start_s=1795507850,
    end_s=1795507853,
    elapsed_s=3,
    timelimit_min=5,
    partition="gpu",
    nodes=2,
    node_list="node[1-2]",
    alloc_cpus=4,
    alloc_gpus=4,
    max_rss_bytes=73797632,
    job_name="two\nnodes",
)

SECOND_ATTEMPT = AccountingRow(
    job_id="4",
    job_id_raw="4",
    state=State.PENDING,
    submit_s=1795507856,
    eligible_s=1795507867,
    timelimit_min=5,
    partition="gpu",
    nodes=2,
    reason="BeginTime",
    job_name="two\nnodes",
)

CANCELLED = AccountingRow(
    job_id="5",
    job_id_raw="5",
    state=State.CANCELLED,
    submit_s=1795507824,
    end_s=1795507828,
    timelimit_min=5,
    partition="gpu",
    nodes=1,
    reason="JobHeldUser",
    job_name="held",
    cancelled_by=0,
)


def test_last_task_has_the_array_id() -> None:
    """The raw id of the last task equals the base number of the array."""
    assert recorded("array") == (
        ARRAY,
        replace(ARRAY, job_id="3_1", job_id_raw="8", max_rss_bytes=10973184),
        replace(ARRAY, job_id="3_2", job_id_raw="3", max_rss_bytes=11227136),
    )


def test_newline_in_the_name_of_a_requeued_job() -> None:
    assert recorded("requeued") == (FIRST_ATTEMPT, SECOND_ATTEMPT)


def test_derived_exit_code_after_a_requeue() -> None:
    """The second attempt still shows the derived exit code of the first."""
    assert recorded("requeued_done") == (
        FIRST_ATTEMPT,
        replace(
            SECOND_ATTEMPT,
            state=State.COMPLETED,
            start_s=1795507867,
            end_s=1795507879,
            elapsed_s=12,
            node_list="node[1-2]",
            alloc_cpus=4,
            alloc_gpus=4,
            max_rss_bytes=73781248,
            exit_code=0,
            derived_exit_code=0,
            derived_exit_signal=15,
        ),
    )


def test_requeued_task_of_a_held_array() -> None:
    rows = recorded("requeued_task")
    assert [(row.job_id, row.job_id_raw, row.state, row.queue_wait_s, row.reason) for row in rows] == [
        ("6_0", "8", State.RUNNING, 46, "JobHeldUser"),
        ("6_1", "6", State.REQUEUED, 46, "JobHeldUser"),
        ("6_1", "6", State.PENDING, None, "BeginTime"),
    ]


def test_jobs_cancelled_in_the_queue_never_started() -> None:
    held_task = replace(CANCELLED, job_id_raw=None, job_name="heldarray")
    assert recorded("cancelled_pending") == (
        CANCELLED,
        *(replace(held_task, job_id=f"6_{task}") for task in range(0, 21, 2)),
    )
    assert {row.gpu_hours for row in recorded("cancelled_pending")} == {0.0}


def test_waiting_array_has_a_row_per_task() -> None:
    waiting = AccountingRow(
        job_id="940_4",
        state=State.PENDING,
        submit_s=1767000000,
        eligible_s=1767000000,
        timelimit_min=60,
        partition="gpu",
        nodes=1,
        reason="JobArrayTaskLimit",
        job_name="bert",
    )
    rows = recorded("pending_remainder")
    assert rows[:-1] == tuple(replace(waiting, job_id=f"940_{task}") for task in (4, 5, 6, 10, 15, 20))
    assert (rows[-1].job_id, rows[-1].job_id_raw, rows[-1].state) == ("940_3", "947", State.RUNNING)


def test_leaves_out_truncated_task_ids() -> None:
    assert [row.job_id for row in recorded("truncated_remainder")] == ["950_0", "950_5", "950_7", "950_11"]


@pytest.mark.parametrize(
    ("name", "last_three"),
    [
        # The array's record says 5_[4-6%2], although tasks 4 and 5 have started and have their own records.
        ("lagging_array", [("5_4", "10", "RUNNING"), ("5_5", "11", "RUNNING"), ("5_6", None, "PENDING")]),
        # The array was cancelled in this state, and sacct never corrects its record.
        (
            "lagging_array_cancelled",
            [("5_4", "10", "CANCELLED"), ("5_5", "11", "CANCELLED"), ("5_6", None, "CANCELLED")],
        ),
    ],
)
def test_lagging_record_of_a_waiting_array(name: str, last_three: list[tuple[str, str | None, str]]) -> None:
    rows = recorded(name)
    assert [row.job_id for row in rows] == [f"5_{task}" for task in range(7)]
    assert [(row.job_id, row.job_id_raw, row.state) for row in rows[4:]] == last_three
    assert [row.start_s for row in rows[4:]] == [1795508236, 1795508236, None]
    assert [row.gpu_hours for row in rows[4:]] == [2 / 3600, 2 / 3600, 0.0]


def test_out_of_memory_only_in_the_step() -> None:
    assert recorded("oom_on_step") == (
        AccountingRow(
            job_id="900",
            job_id_raw="900",
            state=State.FAILED,
            submit_s=1767000000,
            eligible_s=1767000000,
            start_s=1767000060,
            end_s=1767000460,
            elapsed_s=400,
            timelimit_min=60,
            partition="gpu",
            nodes=2,
            node_list="gpu[08-09]",
            alloc_cpus=16,
            alloc_gpus=4,
            max_rss_bytes=round(61.5 * 1024**3),
            exit_code=1,
            derived_exit_code=137,
            out_of_memory=True,
            job_name="vit|2x2",
        ),
    )


def test_memory_above_the_request() -> None:
    """Two nodes of which each was asked for 300M; rank 1 had 400 MB and was killed."""
    (row,) = recorded("over_memory")
    assert (row.max_rss_bytes, row.requested_memory_bytes) == (416931840, 300 * 2**20)
    assert (row.state, row.exit_code, row.exit_signal, row.derived_exit_signal) == (State.FAILED, 15, None, 15)


@pytest.mark.parametrize(
    ("text", "memory_bytes"),
    [
        # From Slurm 21.08 on: the total of the job.
        ("20000M", 10_000 * 2**20), ("312.50G", round(156.25 * 2**30)), ("0", None),
        # Before: per CPU, or per node.
        ("4Gc", 16 * 2**30), ("4000Mc", 16_000 * 2**20), ("4Gn", 4 * 2**30), ("0n", None), ("0c", None),
        ("", None), ("17", None), ("4Gx", None), ("Mc", None), ("?", None),
    ],
)  # fmt: skip
def test_requested_memory_of_a_node(text: str, memory_bytes: int | None) -> None:
    (row,) = parse_sacct(table({"JobID": "9", "NNodes": "2", "AllocCPUS": "8", "ReqMem": text}))
    assert row.requested_memory_bytes == memory_bytes
    (waiting,) = parse_sacct(table({"JobID": "9", "NNodes": "0", "AllocCPUS": "0", "ReqMem": text}))
    assert waiting.requested_memory_bytes is None


def test_typed_untyped_and_unaccounted_gpus() -> None:
    both, none, plain = recorded("typed_gres")
    assert [row.alloc_gpus for row in (both, none, plain)] == [3, None, 1]
    assert [row.gpu_hours for row in (both, none, plain)] == [3.0, None, 1.0]
    assert [row.timelimit_min for row in (both, none, plain)] == [60, None, None]
    assert (plain.state, plain.failed_node, plain.reason) == (State.NODE_FAIL, "node1", "NodeDown")


def test_cancelled_steps_leave_a_timeout() -> None:
    (row,) = recorded("timeout")
    assert (row.state, row.elapsed_s, row.timelimit_min, row.exit_code) == (State.TIMEOUT, 89, 1, 0)


def test_exit_codes_and_signals() -> None:
    # One script ended with exit 137. The other ended with srun's exit status after a rank was killed, which is 137 too.
    exits, killed = recorded("exits")
    assert (exits.state, exits.exit_code, exits.exit_signal, exits.elapsed_s) == (State.FAILED, 9, None, 0)
    assert (exits.derived_exit_code, exits.derived_exit_signal) == (0, None)
    assert (killed.state, killed.exit_code, killed.exit_signal, killed.elapsed_s) == (State.FAILED, 9, None, 0)
    assert (killed.derived_exit_code, killed.derived_exit_signal) == (0, 9)


def test_job_cancelled_after_its_start() -> None:
    (row,) = recorded("cancelled")
    assert (row.state, row.start_s, row.elapsed_s, row.exit_code) == (State.CANCELLED, 1795507874, 19, 0)


def test_heterogeneous_job_has_a_row_per_part() -> None:
    rows = recorded("het")
    assert [(row.job_id, row.state, row.max_rss_bytes, row.end_s) for row in rows] == [
        ("930+0", State.RUNNING, 1024, None),
        ("930+1", State.UNKNOWN, 2048, None),
    ]


def test_missing_columns_and_orphaned_steps() -> None:
    text = table({"JobID": "8.0", "MaxRSS": "5K"}, {"JobID": "9"}, {"JobID": "9.batch", "MaxRSS": "7?"})
    assert parse_sacct(text) == (AccountingRow(job_id="9"),)


def test_a_step_of_another_job_is_left_out() -> None:
    text = table({"JobID": "9", "State": "FAILED"}, {"JobID": "8.0", "State": "OUT_OF_MEMORY", "MaxRSS": "5K"})
    assert parse_sacct(text) == (AccountingRow(job_id="9", state=State.FAILED),)


def test_a_separator_in_a_job_name_loses_no_job() -> None:
    names = [f"a{SEPARATOR}b", f"{SEPARATOR}{SEPARATOR}"]
    rows = parse_sacct(table(*({"JobID": str(number), "JobName": name} for number, name in enumerate(names))))
    assert [row.job_name for row in rows] == names


def test_drops_rows_of_reused_job_ids() -> None:
    text = table(*({"JobID": "9", "Submit": submit} for submit in ("1000", "996500", "1000000")))
    assert [row.submit_s for row in parse_sacct(text, since_s=10**6)] == [996_500, 10**6]


@pytest.mark.parametrize("text", ["", "\n", "sacct: error: something\n", "JobID|State\n9|COMPLETED\n"])
def test_rejects_text_without_a_table(text: str) -> None:
    with pytest.raises(AccountingUnavailable, match="instead of a table"):
        parse_sacct(text)


def test_rejects_times_in_another_format() -> None:
    with pytest.raises(AccountingUnavailable, match="SLURM_TIME_FORMAT did not reach it"):
        parse_sacct(table({"JobID": "9", "Submit": "2026-11-24T08:10:24"}))


@given(st.text(alphabet="a|^\n\r\u2028é 1._", min_size=1, max_size=20).filter(lambda name: SEPARATOR not in name))
def test_any_job_name_is_parsed(name: str) -> None:
    row = {"JobID": "9", "State": "RUNNING", "JobName": name}
    assert parse_sacct(table(row, {**row, "JobID": "10"})) == (
        AccountingRow(job_id="9", state=State.RUNNING, job_name=name),
        AccountingRow(job_id="10", state=State.RUNNING, job_name=name),
    )


@pytest.mark.parametrize(
    ("tasks", "count"),
    [
        ("0-4000000", 100_000), ("0-99999999999", 0), ("0-1,99999999999", 2), ("1-9:0", 0), ("5-1", 0),
        ("9" * 5000, 0), ("0-2000:2", 1001),
    ],
)  # fmt: skip
def test_no_list_of_waiting_tasks_is_endless(tasks: str, count: int) -> None:
    rows = parse_sacct(table({"JobID": f"7_[{tasks}]", "State": "PENDING"}))
    assert len(rows) == count


def test_numbers_longer_than_any_of_slurm_are_unknown() -> None:
    row = {
        "JobID": "7",
        "State": "RUNNING",
        "AllocTRES": f"gres/gpu={'9' * 400}",
        "Start": "1",
        "ElapsedRaw": "9" * 5000,
    }
    (parsed,) = parse_sacct(table(row))
    assert (parsed.alloc_gpus, parsed.elapsed_s, parsed.gpu_hours) == (None, None, None)


WORDS = st.sampled_from(
    ["", "0", "17", "Unknown", "None", "None assigned", "UNLIMITED", "1:0", "4K", "1.5G", "7?", "a=b,gres/gpu:x=?"]
)
JOB_IDS = st.sampled_from(
    ["1", "1_2", "1_[0-2%1]", "1_[0,2...]", "1_[]", "1_[3", "1+0", "1.batch", "1_2.0", "1+0.0", "x"]
)


@given(st.lists(st.fixed_dictionaries({name: JOB_IDS if name == "JobID" else WORDS for name in FIELDS}), max_size=4))
def test_parses_any_word(rows: list[dict[str, str]]) -> None:
    for row in rows:
        row.update(dict.fromkeys(("Submit", "Eligible", "Start", "End"), "1700000000"))
    parse_sacct(table(dict.fromkeys(FIELDS, ""), *rows))
