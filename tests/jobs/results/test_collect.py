"""The join: one row for each run in every state, from the accounting of Slurm or of the local queue."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from typing import Any

import pytest

from disttrain.config.train_config import TrainConfig
from disttrain.records.summary_types import SUMMARY_FIGURES, Failure, Summary
from jobs.results.result import COLUMNS, Result
from jobs.results.run_records import RunRecords
from jobs.results.tables import to_csv, to_json
from jobs.slurm.attempts import AccountingRow
from jobs.slurm.states import State
from jobs.storage.ledger import Job, Ledger
from tests.jobs.results.rows import joined

RUN: dict[str, Any] = {
    "run_id": "2x1-abc", "allocation": "2x1", "nodes": 2, "gpus_per_node": 1, "world_size": 2,
    "point": {}, "train": dataclasses.asdict(TrainConfig(model="bert", lr=2e-4, seed=3).resolved()),
}  # fmt: skip
SPREADS: dict[str, Any] = {
    f"{phase}_{part}_ms": value
    for phase in (
        "data",
        "forward",
        "backward",
        "backward_compute",
        "exposed_comm",
        "overlapped_comm",
        "optimizer",
        "step",
    )
    for part, value in (("p95", 70.0), ("min", 0.5))
}
TELEMETRY: dict[str, Any] = {
    "gpu_util_percent": 90.0, "gpu_power_w": 500.0, "gpu_memory_peak_mib": 4096.0, "gpu_temperature_peak_c": 60.0,
    "gpu_energy_j": 2e4, "gpu_energy_source": "counter", "process_cpu_percent": 101.5, "process_memory_peak_mib": 512.0,
}  # fmt: skip
CROSS_CHECK: dict[str, Any] = {
    "check_exposed_ms": 9.5, "no_sync_exposed_ms": 9.0, "no_sync_difference": -0.05, "no_sync_is_check": True,
    "ddp_exposed_ms": 11.0,
}  # fmt: skip
SUMMARY: Summary = dict.fromkeys(SUMMARY_FIGURES) | {
    "world_size": 2,
    "num_nodes": 2,
    "hosts": ("n1", "n2"),
    "device_name": "H100",
    "backend": "nccl",
    "comparable": True,
    "steps": 220,
    "measured_steps": 200,
    "train_s": 21.5,
    "samples_per_s": 300.0,
    "samples_per_s_per_gpu": 150.0,
    "data_ms": 1.0,
    "forward_ms": 20.0,
    "backward_ms": 40.0,
    "optimizer_ms": 3.0,
    "step_ms": 65.0,
    "train_loss": 0.5,
    "eval_loss": 0.6,
    "eval_accuracy": 0.75,
    "eval_examples": 100,
    "notices": (),
    "backward_compute_ms": 30.0,
    "exposed_comm_ms": 10.0,
    "overlapped_comm_ms": 5.0,
    "bucket_count": 4,
    "exchange_ms": 15.0,
    "bus_gb_per_s": 8.0,
    "slowest_rank": 1,
    "slowest_host": "n2",
    "slowest_ratio": 1.5,
    "buckets": ({"size_bytes": 8.0},),
    "gpu_throttle": ("power cap", "heat"),
    **SPREADS,
    **TELEMETRY,
    **CROSS_CHECK,
}
DONE = AccountingRow(
    "7_0", state=State.COMPLETED, submit_s=1700000000, start_s=1700000060, end_s=1700003660, elapsed_s=3600,
    timelimit_min=60, node_list="n[1-2]", alloc_gpus=2, max_rss_bytes=4096, exit_code=0,
)  # fmt: skip


def failure(rank: int, time_s: float, message: str) -> Failure:
    return Failure(
        rank=rank, host=f"n{rank}", time_s=time_s, error="RuntimeError", message=message, traceback="", user_error=False
    )


FIRST, LATER = failure(1, 10.0, "lost\n  its data"), failure(0, 11.0, "connection closed by peer")


def row_of(
    *attempts: AccountingRow, jobs: tuple[str, ...] = ("7_0",), records: RunRecords | None = None, local: bool = False
) -> Result:
    ledger = Ledger({"2x1-abc": tuple(Job("2x1-abc", job_id, 1.0) for job_id in jobs)} if jobs else {}, ())
    by_job = {job_id: [row for row in attempts if row.job_id == job_id] for job_id in jobs}
    (result,) = joined([RUN], ledger, by_job, {"2x1-abc": records} if records else {}, local=local)
    return result


def outcome(result: Result) -> dict[str, Any]:
    """The columns with a value, without those that were requested."""
    requested = vars(result.requested)
    return {name: value for name, value in result.columns().items() if value is not None and name not in requested}


TIMES = {
    "submit_time": "2023-11-14T22:13:20Z", "start_time": "2023-11-14T22:14:20Z", "end_time": "2023-11-14T23:14:20Z",
}  # fmt: skip
ALONE = {
    "scaling_note": "weak: the sweep has not measured a 1x1 run with the same batch of one rank; strong: the sweep has"
    " not measured a 1x1 run with the same batch of all ranks; crossing: the sweep has not measured a run on one node"
    " with as many GPUs"
}
MEASURED = {name: value for name, value in SUMMARY.items() if value is not None and name != "world_size"}


def test_finished_run() -> None:
    result = row_of(DONE, records=RunRecords(SUMMARY))
    assert vars(result.requested) == {
        "run_id": "2x1-abc", "label": "2x1", "allocation": "2x1", "world_size": 2, "dropped": False, "code": None,
    }  # fmt: skip
    assert (result.varied, result.config) == ({}, RUN["train"])
    assert outcome(result) == {
        "state": "COMPLETED", "state_source": "sacct",
        "exit_code": 0, "job_id": "7_0", "attempts": 1, **TIMES, "queue_wait_s": 60,
        "elapsed_s": 3600, "gpu_hours": 2.0, "gpu_hours_wasted": 0.0, "gpu_hours_from": "sacct", "node_list": "n[1-2]",
        "max_rss_bytes": 4096, **MEASURED, "not_comparable": (), **ALONE,
    }  # fmt: skip


def test_every_figure_of_a_summary_is_a_column() -> None:
    assert set(SUMMARY_FIGURES) <= set(COLUMNS)


def test_local_executor_leaves_slurms_columns_empty() -> None:
    row = dataclasses.replace(DONE, job_id="local-1-0", node_list=None, alloc_gpus=None, max_rss_bytes=None)
    result = row_of(row, jobs=("local-1-0",), records=RunRecords(SUMMARY), local=True)
    assert outcome(result) == {
        "state": "COMPLETED", "state_source": "local queue",
        "exit_code": 0, **TIMES, "elapsed_s": 3600, **MEASURED, "not_comparable": (), **ALONE,
    }  # fmt: skip


def test_job_missing_in_sacct_is_pending() -> None:
    assert outcome(row_of()) == {"state": "PENDING", "state_source": "ledger", "job_id": "7_0", "attempts": 0}


def test_array_cancelled_before_its_tasks_exist() -> None:
    array = AccountingRow("7", state=State.CANCELLED, submit_s=1700000000, end_s=1700003660)
    ledger = Ledger({"2x1-abc": (Job("2x1-abc", "7_0", 1.0),)}, ())
    (result,) = joined([RUN], ledger, {"7": [array]}, {})
    assert (result.state, result.scheduled.reason, result.scheduled.gpu_hours) == ("CANCELLED", "cancelled", 0.0)
    (running,) = joined([RUN], ledger, {"7": [dataclasses.replace(DONE, job_id="7")]}, {})
    assert running.state == "PENDING"  # a started job with the id of the array is another job


def test_run_never_submitted() -> None:
    assert outcome(row_of(jobs=())) == {"state": "NOT_SUBMITTED", "state_source": "ledger", "attempts": 0}


def test_running_run_has_only_steps() -> None:
    running = dataclasses.replace(
        DONE, state=State.RUNNING, end_s=None, elapsed_s=1800, exit_code=0, max_rss_bytes=None
    )
    result = row_of(running, records=RunRecords(None, (), 40))
    assert outcome(result) == {
        "state": "RUNNING", "state_source": "sacct",
        "job_id": "7_0", "attempts": 1, "submit_time": TIMES["submit_time"],
        "start_time": TIMES["start_time"], "queue_wait_s": 60, "elapsed_s": 1800, "gpu_hours": 1.0,
        "gpu_hours_wasted": 0.0, "gpu_hours_from": "sacct", "node_list": "n[1-2]", "steps": 40,
    }  # fmt: skip


def test_requeued_run_is_pending() -> None:
    first = dataclasses.replace(DONE, state=State.REQUEUED, exit_code=0)
    second = AccountingRow("7_0", state=State.PENDING, submit_s=1700003700)
    for attempts in ((first,), (first, second)):
        result = row_of(*attempts)
        scheduled = result.scheduled
        assert (result.phase.value, scheduled.attempts, scheduled.gpu_hours) == ("pending", len(attempts), 2.0)
        assert (scheduled.exit_code, scheduled.reason) == (None, None)


def test_resubmitted_run() -> None:
    """The latest job gives the state, and all jobs count for the GPU-hours."""
    failed = dataclasses.replace(DONE, state=State.FAILED, exit_code=1)
    again = dataclasses.replace(DONE, job_id="9", elapsed_s=900)
    scheduled = row_of(failed, again, jobs=("7_0", "9"), records=RunRecords(SUMMARY)).scheduled
    assert (scheduled.state, scheduled.job_id, scheduled.attempts) == ("COMPLETED", "9", 2)
    assert scheduled.gpu_hours == 2.5


def test_gpu_hours_without_accounted_gpus() -> None:
    scheduled = row_of(dataclasses.replace(DONE, alloc_gpus=None)).scheduled
    assert (scheduled.gpu_hours, scheduled.gpu_hours_from) == (2.0, "plan")


def test_gpus_that_one_of_two_attempts_has_accounted() -> None:
    earlier = dataclasses.replace(DONE, submit_s=1690000000, state=State.REQUEUED, alloc_gpus=None, elapsed_s=1800)
    scheduled = row_of(earlier, DONE).scheduled
    assert (scheduled.gpu_hours, scheduled.gpu_hours_from) == (3.0, "plan")


def test_out_of_memory_of_a_step() -> None:
    result = row_of(dataclasses.replace(DONE, state=State.FAILED, exit_code=1, out_of_memory=True))
    assert (result.state, result.scheduled.exit_code) == ("OUT_OF_MEMORY", 1)


def test_a_complete_run_with_a_killed_step() -> None:
    """The batch script ended with 0, so the results count."""
    result = row_of(dataclasses.replace(DONE, out_of_memory=True), records=RunRecords(SUMMARY))
    assert (result.state, result.figures["samples_per_s"]) == ("COMPLETED", 300.0)


@pytest.mark.parametrize(
    ("changes", "failures", "reason"),
    [
        ({"state": State.FAILED}, (FIRST, LATER), "rank 1 on n1: RuntimeError: lost its data"),
        (
            {"state": State.FAILED},
            (LATER,),
            "rank 0 on n0: RuntimeError: connection closed by peer; no error from rank 1, killed?",
        ),
        ({"state": State.FAILED}, (LATER, FIRST), "rank 1 on n1: RuntimeError: lost its data"),
        ({"state": State.FAILED}, (), "no rank reported an error: see its log"),
        ({"state": State.FAILED, "exit_signal": 9}, (), "ended by SIGKILL; no rank reported an error: see its log"),
        # If Slurm ended the run, a rank only reports the consequence.
        ({"state": State.OUT_OF_MEMORY}, (LATER,), "out of memory: request more with memory_gb_per_gpu"),
        (
            {"state": State.FAILED, "out_of_memory": True},
            (LATER,),
            "out of memory: request more with memory_gb_per_gpu",
        ),
        ({"state": State.TIMEOUT}, (LATER,), "time limit of 60 min reached before the first step"),
        ({"state": State.TIMEOUT, "timelimit_min": None}, (), "time limit reached before the first step"),
        ({"state": State.NODE_FAIL}, (LATER,), "node n[1-2] failed before the first step"),
        ({"state": State.NODE_FAIL, "failed_node": "n2"}, (), "node n2 failed before the first step"),
        ({"state": State.CANCELLED}, (), "cancelled"),
        ({"state": State.PREEMPTED}, (LATER,), "preempted before the first step"),
        ({"state": State.BOOT_FAIL}, (), "boot fail"),
        ({"state": State.COMPLETED}, (LATER,), None),
        ({"state": State.RUNNING}, (FIRST,), None),
        ({"state": State.UNKNOWN}, (FIRST,), None),
    ],
)
def test_reason(changes: dict[str, Any], failures: tuple[Failure, ...], reason: str | None) -> None:
    row = row_of(dataclasses.replace(DONE, **changes), records=RunRecords(None, failures))
    assert row.scheduled.reason == reason


def test_only_logs_of_failed_runs_without_a_reason_are_read() -> None:
    """10,000 finished runs cost no reads."""
    states = [State.COMPLETED, State.FAILED, State.CANCELLED, State.FAILED, State.RUNNING]
    planned = [{**RUN, "run_id": str(number)} for number in range(len(states))]
    ledger = Ledger({run["run_id"]: (Job(run["run_id"], f"7_{run['run_id']}", 1.0),) for run in planned}, ())
    attempts = {
        f"7_{number}": [dataclasses.replace(DONE, job_id=f"7_{number}", state=state)]
        for number, state in enumerate(states)
    }
    read: list[str] = []

    def read_log(job_id: str) -> str:
        read.append(job_id)
        return "srun: error: n2: task 1: Killed\n"

    rows = joined(planned, ledger, attempts, {"1": RunRecords(None, (FIRST,))}, read_log=read_log)
    assert read == ["7_3"]
    assert rows[3].scheduled.reason == (
        "rank 1 on n2 was killed by SIGKILL: from outside, or because its node had no memory left"
    )


def test_failed_run_with_a_summary_has_only_steps() -> None:
    result = row_of(dataclasses.replace(DONE, state=State.TIMEOUT), records=RunRecords(SUMMARY))
    assert result.figures == {"steps": 220}


LINK_SUMMARY = SUMMARY | {
    "bus_gb_per_s": None, "samples_per_s": None, "link_latency_ms": 0.25, "link_bus_gb_per_s": 10.0
}  # fmt: skip


def linked(
    *summaries: Summary | None, allocations: tuple[str, ...] = ("2x1", "2x1"), link_first: bool = False
) -> list[Result]:
    """The rows of a training run and of a link run; a run without a summary is still running."""
    configs = (RUN["train"], dataclasses.asdict(TrainConfig(model="link")))
    planned = [
        {**RUN, "run_id": name, "allocation": allocation, "train": train, "point": point}
        for name, allocation, train, point in zip("ab", allocations, configs, ({}, {"model": "link"}), strict=True)
    ]
    if link_first:
        planned.reverse()
    ledger = Ledger({name: (Job(name, name, 1.0),) for name in "ab"}, ())
    states = [State.COMPLETED if summary else State.RUNNING for summary in summaries]
    attempts = {
        name: [dataclasses.replace(DONE, job_id=name, state=state)] for name, state in zip("ab", states, strict=True)
    }
    records = {name: RunRecords(summary) for name, summary in zip("ab", summaries, strict=True)}
    return list(joined(planned, ledger, attempts, records))


def test_share_of_the_link() -> None:
    trained, link = (row.columns() for row in linked(SUMMARY, LINK_SUMMARY))
    assert (trained["bus_gb_per_s"], trained["link_share"]) == (8.0, 0.8)
    assert (trained["link_latency_ms"], trained["link_bus_gb_per_s"]) == (None, None)
    assert (link["link_latency_ms"], link["link_bus_gb_per_s"], link["link_share"]) == (0.25, 10.0, None)
    assert [(row["label"], row["model"]) for row in (trained, link)] == [("2x1", "bert"), ("2x1 model=link", "link")]


def test_the_link_run_may_be_the_first() -> None:
    link, trained = (row.columns() for row in linked(SUMMARY, LINK_SUMMARY, link_first=True))
    assert (link["model"], link["link_share"], trained["model"], trained["link_share"]) == ("link", None, "bert", 0.8)


def test_unknown_share_of_the_link() -> None:
    def share(*summaries: Summary | None, **options: Any) -> Any:
        return linked(*summaries, **options)[0].columns()["link_share"]

    assert share(SUMMARY, None) is None
    assert share(SUMMARY | {"bus_gb_per_s": None}, LINK_SUMMARY) is None
    assert share(SUMMARY, LINK_SUMMARY, allocations=("2x1", "2x2")) is None
    assert share(SUMMARY, LINK_SUMMARY | {"backend": "gloo"}) is None


def varied_rows(*configs: dict[str, Any]) -> tuple[Result, ...]:
    """The rows of runs that differ in these fields, none of which was submitted."""
    planned = [
        {**RUN, "run_id": f"2x1-{number}", "train": {**RUN["train"], **config}} for number, config in enumerate(configs)
    ]
    return joined(planned, Ledger({}, ()), {}, {})


def test_varied_fields_follow_the_run_id() -> None:
    """The sweep that could not be told apart: only these two fields differ."""
    rows = varied_rows(
        {"weight_decay": 0.0, "precision": "fp32"},
        {"weight_decay": 0.0, "precision": "bf16"},
        {"weight_decay": 0.1, "precision": "fp32"},
    )
    names = ["run_id", "weight_decay", "precision", "label"]
    assert [list(row.columns())[:4] for row in rows] == [names] * 3
    expected = [
        ("2x1-0", 0.0, "fp32", "2x1 weight_decay=0.0 precision=fp32"),
        ("2x1-1", 0.0, "bf16", "2x1 weight_decay=0.0 precision=bf16"),
        ("2x1-2", 0.1, "fp32", "2x1 weight_decay=0.1 precision=fp32"),
    ]
    read = list(csv.reader(io.StringIO(to_csv(rows))))
    assert [line[:4] for line in read] == [names, *([str(value) for value in row] for row in expected)]
    runs = json.loads(to_json(rows, "s", "site"))["runs"]
    assert [tuple(run[name] for name in names) for run in runs] == expected


def test_csv_and_json_have_every_column() -> None:
    rows = (row_of(DONE, records=RunRecords(SUMMARY)), row_of(), row_of(dataclasses.replace(DONE, state=State.FAILED)))
    written = json.loads(to_json(rows, "s", "site"))
    assert (written["sweep"], written["cluster"]) == ("s", "site")
    lists = {name: [value] for name, value in SUMMARY.items() if isinstance(value, tuple)}
    for row, run in zip(rows, written["runs"], strict=True):
        assert run.pop("config") == RUN["train"]
        expected = json.loads(json.dumps(row.columns()))  # tuples become lists
        assert run == expected
        assert lists.keys() <= run.keys()
    read = list(csv.DictReader(io.StringIO(to_csv(rows))))
    assert list(read[0]) == list(COLUMNS)
    plain = {name: value for name, value in rows[0].columns().items() if not isinstance(value, tuple)}
    assert {name: read[0][name] for name in plain} == {
        name: "" if value is None else str(value) for name, value in plain.items()
    }


@pytest.mark.parametrize(
    ("value", "cell"),
    [
        (("hw_slowdown", "sw_power_cap"), "hw_slowdown,sw_power_cap"),
        (("one sentence",), '["one sentence"]'),
        ((), "none"),
        (None, ""),
        (("a, b", "c"), '["a, b", "c"]'),
        (({"size_bytes": 8.0},), '[{"size_bytes": 8.0}]'),
    ],
)
def test_lists_in_a_csv_cell(value: object, cell: str) -> None:
    """No throttling differs from no measurement; a comma within a name does not split it."""
    (row,) = csv.DictReader(io.StringIO(to_csv([row_of(DONE, records=RunRecords(SUMMARY | {"gpu_throttle": value}))])))
    assert row["gpu_throttle"] == cell


def test_all_columns_add_the_config() -> None:
    (row,) = csv.DictReader(io.StringIO(to_csv([row_of()], all_columns=True)))
    assert (row["lr"], row["seed"], row["model"], row["checkpoint"]) == (
        "0.0002",
        "3",
        "bert",
        "google-bert/bert-base-uncased",
    )


def test_a_dropped_run_is_marked() -> None:
    (row,) = joined([{**RUN, "dropped": True}], Ledger({}, ()), {}, {})
    assert (row.dropped, row.columns()["dropped"]) == (True, True)
