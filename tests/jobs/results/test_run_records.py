"""The records of one run: the summary, the failures in their order, and the last step."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

import pytest

from disttrain.records.record_files import encode, failure_name, metrics_name, write_json
from disttrain.records.record_types import CheckpointRecord, ExchangeRecord, Record, StepRecord
from disttrain.records.summary_types import SUMMARY_FIGURES, Failure, Summary
from jobs.results.run_records import RunRecords, read_run

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
    "buckets": ({"size_bytes": 8.0},),
    "gpu_throttle": ("power cap", "heat"),
}
FIRST, LATER = (
    Failure(
        rank=rank, host=f"n{rank}", time_s=time_s, error="RuntimeError", message="m", traceback="", user_error=False
    )
    for rank, time_s in ((1, 10.0), (0, 11.0))
)


def step_of(number: int) -> StepRecord:
    return StepRecord(
        step=number, epoch=0, start_s=0.0, loss=1.0, lr=1e-3, examples=4, data_ms=1.0, forward_ms=1.0,
        backward_ms=1.0, optimizer_ms=1.0, step_ms=4.0,
    )  # fmt: skip


def lines_of(records: Iterable[Record]) -> str:
    return "".join(encode(record) + "\n" for record in records)


def test_reads_the_records_of_a_run(tmp_path: Path) -> None:
    assert read_run(tmp_path) == RunRecords()
    for item in (LATER, FIRST):
        write_json(tmp_path / failure_name(item.rank), asdict(item))
    lines = lines_of(map(step_of, range(1, 101)))
    (tmp_path / metrics_name(0)).write_text(lines + '{"kind": "step", "step": 101, "ep')
    assert read_run(tmp_path) == RunRecords(None, (FIRST, LATER), 100)
    write_json(tmp_path / "summary.json", SUMMARY)
    assert read_run(tmp_path) == RunRecords(SUMMARY, (FIRST, LATER), None)


def exchange_of(number: int, buckets: int) -> ExchangeRecord:
    times = tuple(100 / 3 + bucket for bucket in range(buckets))
    return ExchangeRecord(step=number, bucket_bytes=(2**20,) * buckets, ready_ms=times, done_ms=times)


def test_last_step_before_a_long_exchange(tmp_path: Path) -> None:
    file = tmp_path / metrics_name(0)
    # The order in which a rank writes: all steps since the last write, then their exchanges.
    flushed = lines_of([*map(step_of, range(1, 31)), *(exchange_of(number, 110) for number in range(1, 31))])
    longer = lines_of([exchange_of(31, 20000)])
    for written, step in ((flushed, 30), (flushed[:-2], 29), (flushed + longer[:-2], 30), (flushed + longer, 31)):
        file.write_text(written)
        assert read_run(tmp_path).last_step == step


def test_checkpoint_is_not_the_last_step(tmp_path: Path) -> None:
    saved = CheckpointRecord(step=7, blocked_ms=1.0, write_s=1.0, size_bytes=1, error=None)
    (tmp_path / metrics_name(0)).write_text(lines_of([step_of(7), step_of(8), saved]))
    assert read_run(tmp_path).last_step == 8


@pytest.mark.parametrize(
    "before", ["", '{"kind": "start"}\n', '{"kind": "start", "vers', '{"kind": "telemetry"}\n' * 9999]
)
def test_file_without_a_step(tmp_path: Path, before: str) -> None:
    (tmp_path / metrics_name(0)).write_text(before)
    assert read_run(tmp_path) == RunRecords(last_step=0)
