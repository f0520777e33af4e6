"""Detailed timing on real gloo ranks: its records are consistent, and it does not change the training."""

from __future__ import annotations

import dataclasses
from itertools import pairwise
from typing import TYPE_CHECKING, TypeVar

import pytest
import torch

from disttrain.analysis.comm_overlap import Exchange
from disttrain.analysis.measured_steps import measured_steps
from disttrain.config.train_config import TrainConfig
from disttrain.measure.gather_steps import drop_old_exchanges, pack, unpack
from disttrain.records.record_files import decode, encode, metrics_name, read_records
from disttrain.records.record_types import ClockRecord, CrossCheckRecord, ExchangeRecord, StartRecord, StepRecord
from disttrain.records.step_types import StepTimes

if TYPE_CHECKING:
    from tests.disttrain.conftest import Finished, RunRanks

Kind = TypeVar("Kind")


def of_kind(finished: Finished, rank: int, kind: type[Kind]) -> list[Kind]:
    records = read_records(finished.output_dir / metrics_name(rank))
    return [record for record in records if isinstance(record, kind)]


@pytest.fixture
def detailed(vit_config: TrainConfig) -> TrainConfig:
    """A config with 3 MB of gradients in several buckets; DDP's first bucket takes up to 1 MiB in any case."""
    size = {"hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 4}
    architecture = {**(vit_config.architecture or {}), **size}
    return dataclasses.replace(
        vit_config, architecture=architecture, detailed_timing=True, bucket_cap_mb=0.5, max_steps=12
    )


def test_times_the_exchange_of_each_step(detailed: TrainConfig, run_ranks: RunRanks) -> None:
    finished = run_ranks(detailed, 2)
    assert finished.exit_codes == (0, 0)
    (start,) = of_kind(finished, 0, StartRecord)
    for rank in range(2):
        steps, exchanges = finished.steps(rank), of_kind(finished, rank, ExchangeRecord)
        assert [exchange.step for exchange in exchanges] == [step.step for step in steps] == list(range(1, 13))
        for step, exchange in zip(steps, exchanges, strict=True):
            assert len(exchange.bucket_bytes) > 2
            assert sum(exchange.bucket_bytes) == 4 * start.parameters
            backward_end_ms = step.step_ms - step.optimizer_ms
            for ready, done in zip(exchange.ready_ms, exchange.done_ms, strict=True):
                assert step.data_ms + step.forward_ms < ready < done <= backward_end_ms
            assert step.exposed_comm_ms == pytest.approx(backward_end_ms - max(exchange.ready_ms))
            assert step.overlapped_comm_ms is not None
            assert 0 <= step.overlapped_comm_ms <= max(exchange.ready_ms) - min(exchange.ready_ms)
        # Consecutive steps have no gap between them, except after step 8, where an evaluation follows.
        for before, after in pairwise(steps):
            if before.epoch == after.epoch:
                assert before.start_s is not None
                assert after.start_s is not None
                assert after.start_s - before.start_s == pytest.approx(before.step_ms / 1000)
    summary = finished.summary
    assert summary["bucket_count"] == len(of_kind(finished, 0, ExchangeRecord)[-1].bucket_bytes)
    assert summary["exchange_ms"] is not None
    assert summary["bus_gb_per_s"] == pytest.approx(4 * start.parameters / summary["exchange_ms"] / 1e6)
    assert summary["slowest_rank"] in (0, 1)


def test_clock_and_cross_check_records(detailed: TrainConfig, run_ranks: RunRanks) -> None:
    finished = run_ranks(detailed, 2)
    for rank in range(2):
        clocks = of_kind(finished, rank, ClockRecord)
        assert len(clocks) == 2
        assert all(abs(clock.offset_s) <= clock.error_s for clock in clocks), "two ranks of one host have one clock"
        (check,) = of_kind(finished, rank, CrossCheckRecord)
        assert check.no_sync_exposed_ms == pytest.approx(check.backward_ms - check.no_sync_backward_ms)
        assert check.passes == 10
        assert 0 < check.exposed_comm_ms <= check.exchange_ms
        assert check.ddp_exposed_ms is not None


def test_detailed_timing_changes_no_loss(detailed: TrainConfig, run_ranks: RunRanks) -> None:
    timed = run_ranks(detailed, 2)
    untimed = run_ranks(dataclasses.replace(detailed, detailed_timing=False), 2)
    assert timed.losses() == untimed.losses()
    assert untimed.summary["exposed_comm_ms"] is None, "not measured is None, not 0"
    assert of_kind(untimed, 0, ExchangeRecord) == []


def test_one_rank_has_no_exchange(detailed: TrainConfig, run_ranks: RunRanks) -> None:
    finished = run_ranks(detailed, 1)
    assert {(step.exposed_comm_ms, step.overlapped_comm_ms) for step in finished.steps(0)} == {(0.0, 0.0)}
    summary = finished.summary
    assert (summary["exposed_comm_ms"], summary["overlapped_comm_ms"], summary["bucket_count"]) == (0.0, 0.0, None)
    assert summary["backward_compute_ms"] == summary["backward_ms"]
    assert of_kind(finished, 0, CrossCheckRecord) == []


def test_accumulated_batches_are_exchanged_once(detailed: TrainConfig, run_ranks: RunRanks) -> None:
    config = dataclasses.replace(detailed, per_gpu_batch=None, global_batch=8, grad_accum_steps=2, max_steps=3)
    finished = run_ranks(config, 2)
    (start,) = of_kind(finished, 0, StartRecord)
    for step, exchange in zip(finished.steps(0), of_kind(finished, 0, ExchangeRecord), strict=True):
        assert sum(exchange.bucket_bytes) == 4 * start.parameters
        assert step.exposed_comm_ms is not None
        assert step.exposed_comm_ms < step.backward_ms


def test_bf16_halves_the_sent_bytes(detailed: TrainConfig, run_ranks: RunRanks) -> None:
    finished = run_ranks(dataclasses.replace(detailed, grad_compression="bf16", max_steps=3), 2)
    (start,) = of_kind(finished, 0, StartRecord)
    assert sum(of_kind(finished, 0, ExchangeRecord)[-1].bucket_bytes) == 2 * start.parameters


def test_unpack_reverses_pack() -> None:
    times = [
        StepTimes(
            start_s=3.0, data_ms=1.0, forward_ms=2.0, backward_ms=5.0, optimizer_ms=1.0, step_ms=9.0,
            exposed_comm_ms=exposed, overlapped_comm_ms=exposed,
        )
        for exposed in (None, 1.5)
    ]  # fmt: skip
    steps = [StepRecord(step=1, epoch=0, loss=None, lr=0.1, examples=1, **vars(step_times)) for step_times in times]
    clock = ClockRecord(at_s=3.0, offset_s=1.0, error_s=0.1)
    untimed, without_exchange = (measured_steps([clock, step], 0)[0] for step in steps)
    timed = dataclasses.replace(without_exchange, exchange=Exchange((8, 4), (1.0, 2.0), (2.0, 3.0)))
    assert untimed.start_ms == 2000.0
    for step, step_times in zip((untimed, timed), times, strict=True):
        unpacked = unpack(torch.tensor(pack(step), dtype=torch.float64).tolist())
        assert unpacked == dataclasses.replace(step, times=step_times)


def test_reads_records_of_earlier_versions() -> None:
    line = encode(_step(1, start_s=3.0)).replace('"start_s": 3.0, ', "")
    assert "start_s" not in line
    (step,) = measured_steps([decode(line)], 0)
    assert (step.times.step_ms, step.exchange) == (9.0, None)


def test_drops_old_exchanges_of_long_runs() -> None:
    exchanges = [ExchangeRecord(step=n, bucket_bytes=(8,), ready_ms=(1.0,), done_ms=(2.0,)) for n in range(1, 1501)]
    steps = [_step(n) for n in range(1, 1501)]
    remaining = drop_old_exchanges(record for pair in zip(steps, exchanges, strict=True) for record in pair)
    assert [record.step for record in remaining if isinstance(record, StepRecord)] == list(range(1, 1501))
    assert [record.step for record in remaining if isinstance(record, ExchangeRecord)] == list(range(501, 1501))


def _step(number: int, start_s: float | None = 0.0) -> StepRecord:
    return StepRecord(
        step=number, epoch=0, start_s=start_s, loss=None, lr=0.1, examples=1, data_ms=1.0, forward_ms=2.0,
        backward_ms=5.0, optimizer_ms=1.0, step_ms=9.0,
    )  # fmt: skip
