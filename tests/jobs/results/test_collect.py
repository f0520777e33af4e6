"""The join: one row for each run in every state, from the accounting of Slurm or of the local queue."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from typing import Any

import pytest

from disttrain.config.train_config import TrainConfig
from disttrain.records.summary_types import Failure, Summary
from jobs.results.collect import COLUMNS, Result, join
from jobs.results.run_records import RunRecords
from jobs.results.tables import to_csv, to_json
from jobs.slurm.attempts import AccountingRow
from jobs.slurm.states import State
from jobs.storage.ledger import Job, Ledger

RUN = {
    "run_id": "2x1-abc", "allocation": "2x1", "nodes": 2, "gpus_per_node": 1, "world_size": 2,
    "train": dataclasses.asdict(TrainConfig(model="bert", lr=2e-4, seed=3).resolved()),
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
SUMMARY = Summary(
    world_size=2, num_nodes=2, hosts=("n1", "n2"), device_name="H100", backend="nccl", comparable=True, steps=220,
    measured_steps=200, train_s=21.5, samples_per_s=300.0, samples_per_s_per_gpu=150.0, data_ms=1.0, forward_ms=20.0,
    backward_ms=40.0, optimizer_ms=3.0, step_ms=65.0, train_loss=0.5, eval_loss=0.6, eval_accuracy=0.75,
    eval_examples=100, notices=(), backward_compute_ms=30.0, exposed_comm_ms=10.0, overlapped_comm_ms=5.0,
    bucket_count=4,
    exchange_ms=15.0, bus_gb_per_s=8.0, slowest_rank=1, slowest_host="n2", slowest_ratio=1.5,
    buckets=({"size_bytes": 8.0},), gpu_throttle=("power cap", "heat"), **SPREADS, **TELEMETRY, **CROSS_CHECK,
)  # fmt: skip
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
    (result,) = join([RUN], ledger, by_job, {"2x1-abc": records} if records else {}, local=local)
    return result


def outcome(result: Result) -> dict[str, Any]:
    """The columns with a value, without those of the config."""
    requested = {"run_id", "allocation", "model", "per_gpu_batch", "lr", "seed", "world_size"}
    row = dataclasses.asdict(result)
    return {name: value for name, value in row.items() if value is not None and name not in requested}


TIMES = {
    "submit_time": "2023-11-14T22:13:20Z", "start_time": "2023-11-14T22:14:20Z", "end_time": "2023-11-14T23:14:20Z",
}  # fmt: skip
MEASURED = {
    "backend": "nccl", "device_name": "H100", "comparable": True, "steps": 220, "train_s": 21.5,
    "samples_per_s": 300.0, "samples_per_s_per_gpu": 150.0, "train_loss": 0.5, "eval_loss": 0.6, "eval_accuracy": 0.75,
    "data_ms": 1.0, "forward_ms": 20.0, "backward_ms": 40.0, "optimizer_ms": 3.0, "step_ms": 65.0, "hosts": "n1,n2",
    "backward_compute_ms": 30.0, "exposed_comm_ms": 10.0, "overlapped_comm_ms": 5.0, "bucket_count": 4,
    "exchange_ms": 15.0,
    "bus_gb_per_s": 8.0, "slowest_rank": 1, "slowest_host": "n2", "slowest_ratio": 1.5,
    "gpu_throttle": "power cap,heat", **SPREADS, **TELEMETRY, **CROSS_CHECK,
}  # fmt: skip


def test_finished_run() -> None:
    result = row_of(DONE, records=RunRecords(SUMMARY))
    assert (result.run_id, result.allocation, result.model, result.lr, result.seed) == (
        "2x1-abc",
        "2x1",
        "bert",
        2e-4,
        3,
    )
    assert (result.per_gpu_batch, result.global_batch, result.world_size) == (16, None, 2)
    assert outcome(result) == {
        "state": "COMPLETED", "exit_code": 0, "job_id": "7_0", "attempts": 1, **TIMES, "queue_wait_s": 60,
        "elapsed_s": 3600, "gpu_hours": 2.0, "gpu_hours_from": "sacct", "node_list": "n[1-2]",
        "max_rss_bytes": 4096, **MEASURED,
    }  # fmt: skip


def test_columns_of_the_summary() -> None:
    others = {"num_nodes", "measured_steps", "eval_examples", "buckets", "notices"}
    assert {field.name for field in dataclasses.fields(Summary)} - set(COLUMNS) == others


@pytest.mark.parametrize(("reasons", "column"), [(("heat",), "heat"), ((), "none"), (None, None)])
def test_throttling_reasons(reasons: tuple[str, ...] | None, column: str | None) -> None:
    """No throttling differs from no measurement."""
    assert row_of(DONE, records=RunRecords(dataclasses.replace(SUMMARY, gpu_throttle=reasons))).gpu_throttle == column


def test_local_executor_leaves_slurms_columns_empty() -> None:
    row = dataclasses.replace(DONE, job_id="local-1-0", node_list=None, alloc_gpus=None, max_rss_bytes=None)
    result = row_of(row, jobs=("local-1-0",), records=RunRecords(SUMMARY), local=True)
    assert outcome(result) == {"state": "COMPLETED", "exit_code": 0, **TIMES, "elapsed_s": 3600, **MEASURED}


def test_job_missing_in_sacct_is_pending() -> None:
    assert outcome(row_of()) == {"state": "PENDING", "job_id": "7_0", "attempts": 0}


def test_array_cancelled_before_its_tasks_exist() -> None:
    array = AccountingRow("7", state=State.CANCELLED, submit_s=1700000000, end_s=1700003660)
    ledger = Ledger({"2x1-abc": (Job("2x1-abc", "7_0", 1.0),)}, ())
    (result,) = join([RUN], ledger, {"7": [array]}, {}, local=False)
    assert (result.state, result.reason, result.gpu_hours) == ("CANCELLED", "cancelled", 0.0)
    (running,) = join([RUN], ledger, {"7": [dataclasses.replace(DONE, job_id="7")]}, {}, local=False)
    assert running.state == "PENDING"  # a started job with the id of the array is another job


def test_run_never_submitted() -> None:
    assert outcome(row_of(jobs=())) == {"state": "NOT_SUBMITTED", "attempts": 0}


def test_running_run_has_only_steps() -> None:
    running = dataclasses.replace(
        DONE, state=State.RUNNING, end_s=None, elapsed_s=1800, exit_code=0, max_rss_bytes=None
    )
    result = row_of(running, records=RunRecords(None, (), 40))
    assert outcome(result) == {
        "state": "RUNNING", "job_id": "7_0", "attempts": 1, "submit_time": TIMES["submit_time"],
        "start_time": TIMES["start_time"], "queue_wait_s": 60, "elapsed_s": 1800, "gpu_hours": 1.0,
        "gpu_hours_from": "sacct", "node_list": "n[1-2]", "steps": 40,
    }  # fmt: skip


def test_requeued_run_is_pending() -> None:
    first = dataclasses.replace(DONE, state=State.REQUEUED, exit_code=0)
    second = AccountingRow("7_0", state=State.PENDING, submit_s=1700003700)
    for attempts in ((first,), (first, second)):
        result = row_of(*attempts)
        assert (result.phase.value, result.attempts, result.gpu_hours) == ("pending", len(attempts), 2.0)
        assert (result.exit_code, result.reason) == (None, None)


def test_resubmitted_run() -> None:
    """The latest job gives the state, and all jobs count for the GPU-hours."""
    failed = dataclasses.replace(DONE, state=State.FAILED, exit_code=1)
    again = dataclasses.replace(DONE, job_id="9", elapsed_s=900)
    result = row_of(failed, again, jobs=("7_0", "9"), records=RunRecords(SUMMARY))
    assert (result.state, result.job_id, result.attempts, result.gpu_hours) == ("COMPLETED", "9", 2, 2.5)


def test_gpu_hours_without_accounted_gpus() -> None:
    result = row_of(dataclasses.replace(DONE, alloc_gpus=None))
    assert (result.gpu_hours, result.gpu_hours_from) == (2.0, "plan")


def test_out_of_memory_of_a_step() -> None:
    result = row_of(dataclasses.replace(DONE, state=State.FAILED, exit_code=1, out_of_memory=True))
    assert (result.state, result.exit_code) == ("OUT_OF_MEMORY", 1)


@pytest.mark.parametrize(
    ("changes", "failures", "reason"),
    [
        ({"state": State.FAILED}, (FIRST, LATER), "rank 1 on n1: RuntimeError: lost its data"),
        (
            {"state": State.FAILED},
            (LATER,),
            "rank 0 on n0: RuntimeError: connection closed by peer; no error from rank 1, killed?",
        ),
        ({"state": State.FAILED}, (LATER, FIRST), "rank 0 on n0: RuntimeError: connection closed by peer"),
        ({"state": State.FAILED}, (), "no rank reported an error: see its log"),
        ({"state": State.FAILED, "exit_signal": 9}, (), "ended by signal 9; no rank reported an error: see its log"),
        # If Slurm ended the run, a rank only reports the consequence.
        ({"state": State.OUT_OF_MEMORY}, (LATER,), "out of memory: request more with memory_gb_per_gpu"),
        (
            {"state": State.FAILED, "out_of_memory": True},
            (LATER,),
            "out of memory: request more with memory_gb_per_gpu",
        ),
        ({"state": State.TIMEOUT}, (LATER,), "time limit of 60 min reached"),
        ({"state": State.TIMEOUT, "timelimit_min": None}, (), "timeout"),
        ({"state": State.NODE_FAIL}, (LATER,), "node n[1-2] failed"),
        ({"state": State.NODE_FAIL, "failed_node": "n2"}, (), "node n2 failed"),
        ({"state": State.CANCELLED}, (), "cancelled"),
        ({"state": State.PREEMPTED}, (LATER,), "preempted"),
        ({"state": State.BOOT_FAIL}, (), "boot fail"),
        ({"state": State.COMPLETED}, (LATER,), None),
        ({"state": State.RUNNING}, (FIRST,), None),
        ({"state": State.UNKNOWN}, (FIRST,), None),
    ],
)
def test_reason(changes: dict[str, Any], failures: tuple[Failure, ...], reason: str | None) -> None:
    assert row_of(dataclasses.replace(DONE, **changes), records=RunRecords(None, failures)).reason == reason


def test_failed_run_with_a_summary_has_only_steps() -> None:
    result = row_of(dataclasses.replace(DONE, state=State.TIMEOUT), records=RunRecords(SUMMARY))
    assert (result.steps, result.samples_per_s, result.hosts) == (220, None, None)


LINK_SUMMARY = dataclasses.replace(
    SUMMARY, bus_gb_per_s=None, samples_per_s=None, link_latency_ms=0.25, link_bus_gb_per_s=10.0
)


def linked(*summaries: Summary | None, allocations: tuple[str, ...] = ("2x1", "2x1")) -> list[Result]:
    """The rows of a training run and of a link run; a run without a summary is still running."""
    configs = (RUN["train"], dataclasses.asdict(TrainConfig(model="link")))
    planned = [
        {**RUN, "run_id": name, "allocation": allocation, "train": train}
        for name, allocation, train in zip("ab", allocations, configs, strict=True)
    ]
    ledger = Ledger({name: (Job(name, name, 1.0),) for name in "ab"}, ())
    states = [State.COMPLETED if summary else State.RUNNING for summary in summaries]
    attempts = {
        name: [dataclasses.replace(DONE, job_id=name, state=state)] for name, state in zip("ab", states, strict=True)
    }
    records = {name: RunRecords(summary) for name, summary in zip("ab", summaries, strict=True)}
    return list(join(planned, ledger, attempts, records, local=False))


def test_share_of_the_link() -> None:
    trained, link = linked(SUMMARY, LINK_SUMMARY)
    assert (trained.bus_gb_per_s, trained.link_share) == (8.0, 0.8)
    assert (trained.link_latency_ms, trained.link_bus_gb_per_s) == (None, None)
    assert (link.model, link.link_latency_ms, link.link_bus_gb_per_s, link.link_share) == ("link", 0.25, 10.0, None)
    # A link run trains nothing.
    assert (link.per_gpu_batch, link.global_batch, link.lr, link.seed, link.samples_per_s) == (None,) * 5


def test_unknown_share_of_the_link() -> None:
    assert linked(SUMMARY, None)[0].link_share is None
    assert linked(dataclasses.replace(SUMMARY, bus_gb_per_s=None), LINK_SUMMARY)[0].link_share is None
    assert linked(SUMMARY, LINK_SUMMARY, allocations=("2x1", "2x2"))[0].link_share is None
    assert linked(SUMMARY, dataclasses.replace(LINK_SUMMARY, backend="gloo"))[0].link_share is None


def test_csv_and_json_have_every_column() -> None:
    rows = (row_of(DONE, records=RunRecords(SUMMARY)), row_of(), row_of(dataclasses.replace(DONE, state=State.FAILED)))
    plain = [dataclasses.asdict(row) for row in rows]
    assert json.loads(to_json(rows, "s", "site")) == {"sweep": "s", "cluster": "site", "runs": plain}
    read = list(csv.DictReader(io.StringIO(to_csv(rows))))
    assert list(read[0]) == list(COLUMNS)
    assert read == [{name: "" if value is None else str(value) for name, value in row.items()} for row in plain]
