"""Phases of measured steps, exchanges over ranks, and slow ranks."""

from __future__ import annotations

import dataclasses
import random

import pytest

from disttrain.analysis.bandwidth import summarise_exchanges
from disttrain.analysis.comm_overlap import Exchange
from disttrain.analysis.measured_steps import MeasuredStep, offset_at, steps_after_warmup
from disttrain.analysis.straggler import find_straggler
from disttrain.records.figures import summarise_fields
from disttrain.records.record_types import ClockRecord, Record, StartRecord, StepRecord
from disttrain.records.step_types import StepTimes


def step(start_ms: float = 0.0, own: float = 1.0, exchange: Exchange | None = None) -> MeasuredStep:
    times = StepTimes(
        start_s=start_ms / 1000,
        data_ms=1.0,
        forward_ms=10.0 * own,
        backward_ms=30.0,
        optimizer_ms=2.0,
        step_ms=33.0 + 10.0 * own,
        exposed_comm_ms=None if exchange is None else exchange.exposed_comm_ms(41.0),
        overlapped_comm_ms=None if exchange is None else exchange.overlapped_comm_ms(),
    )
    return MeasuredStep(times, exchange)


def test_the_phases_add_up_to_the_step() -> None:
    measured = step(exchange=Exchange((10,), (30.0,), (41.0,)))
    medians = summarise_fields(StepTimes, [measured.times])
    parts = ("data_ms", "forward_ms", "backward_compute_ms", "exposed_comm_ms", "optimizer_ms")
    assert sum(medians[name] for name in parts) == medians["step_ms"] == 43.0
    assert medians["exposed_comm_ms"] == 11.0
    assert summarise_fields(StepTimes, [step().times])["exposed_comm_ms"] is None, "not measured is None, not 0"


def test_bucket_times_over_the_steps() -> None:
    exchange = Exchange((4_000_000, 2_000_000), (10.0, 20.0), (18.0, 24.0))
    ranks = [[step(at, exchange=exchange) for at in (0.0, 100.0)]] * 2
    exchanges = summarise_exchanges(ranks, 1)
    assert exchanges is not None
    first, second = exchanges.buckets
    assert (first.size_bytes, first.all_reduce_ms.median, first.bus_gb_per_s) == (4_000_000, 8.0, 0.5)
    assert (second.all_reduce_ms.median, second.bus_gb_per_s) == (4.0, 0.5)
    assert (exchanges.all_reduce_ms.median, exchanges.bus_gb_per_s) == (12.0, 0.5)
    assert summarise_exchanges([[step()], [step()]], 1) is None


def test_steps_start_on_the_clock_of_rank_0() -> None:
    measured = step(start_ms=5000.0)
    assert measured.start_ms == 5000.0
    assert dataclasses.replace(measured, clock_offset_s=2.0).start_ms == 3000.0


def clock(at_s: float, offset_s: float) -> ClockRecord:
    return ClockRecord(at_s=at_s, offset_s=offset_s, error_s=0.0)


def test_a_clock_that_drifts_is_interpolated() -> None:
    clocks = (clock(100.0, 2.0), clock(200.0, 2.5))
    assert [offset_at(time_s, clocks) for time_s in (100.0, 150.0, 200.0)] == [2.0, 2.25, 2.5]
    assert (offset_at(150.0, clocks[:1]), offset_at(150.0, ())) == (2.0, 0.0)


def recorded(number: int) -> StepRecord:
    return StepRecord(
        step=number, epoch=0, loss=1.0, lr=1.0, examples=1, data_ms=1.0, forward_ms=1.0, backward_ms=1.0,
        optimizer_ms=1.0, step_ms=4.0,
    )  # fmt: skip


START = StartRecord(
    time_s=0.0, rank=0, world_size=2, local_rank=0, node_rank=0, host="n1", pid=1, job_id=None, restart_count=0,
    first_step=1, device="cpu", device_name="", backend="gloo", shared_gpu=False, folded=False, threads=1, versions={},
    parameters=1, train_examples=1, eval_examples=0, notices=(),
)  # fmt: skip


def test_each_start_has_its_own_warmup() -> None:
    """A run that resumes at step 4 compiles and fills its caches again."""
    records: list[Record] = [START, *map(recorded, (1, 2, 3)), START, *map(recorded, (4, 5, 6))]
    assert [record.step for record in steps_after_warmup(records, 2)] == [3, 6]


def noisy(own: float, seed: int, steps: int = 50) -> list[MeasuredStep]:
    rng = random.Random(seed)
    return [step(own=own * rng.uniform(0.9, 1.1)) for _ in range(steps)]


@pytest.mark.parametrize("ranks", [2, 4])
def test_only_a_slow_rank_is_reported(ranks: int) -> None:
    for seed in range(10):
        even = [noisy(1.0, seed * 10 + rank) for rank in range(ranks)]
        straggler = find_straggler(even)
        assert straggler is not None
        assert not straggler.is_slow
        even[1] = noisy(1.6, seed)
        straggler = find_straggler(even)
        assert straggler is not None
        assert (straggler.rank, straggler.is_slow) == (1, True)


def test_an_occasionally_slow_rank_is_not_reported() -> None:
    mostly_even = [step() for _ in range(60)] + [step(own=5.0) for _ in range(40)]
    straggler = find_straggler([[step() for _ in range(100)], mostly_even])
    assert straggler is not None
    assert not straggler.is_slow


def test_one_rank_has_no_straggler() -> None:
    assert find_straggler([[step()]]) is None
    assert find_straggler([[], []]) is None


def test_few_steps_report_no_rank() -> None:
    straggler = find_straggler([noisy(1.0, 1, steps=19), noisy(3.0, 2, steps=19)])
    assert straggler is not None
    assert (straggler.rank, straggler.is_slow) == (1, False)
