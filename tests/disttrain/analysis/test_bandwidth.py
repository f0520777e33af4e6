"""The bandwidth of a step's exchange, on hand-made steps."""

from __future__ import annotations

from disttrain.analysis.bandwidth import summarise_exchanges
from disttrain.analysis.comm_overlap import Exchange
from disttrain.analysis.measured_steps import MeasuredStep
from disttrain.records.step_types import StepTimes


def step(exchange: Exchange | None) -> MeasuredStep:
    times = StepTimes(start_s=0.0, data_ms=1.0, forward_ms=1.0, backward_ms=1.0, optimizer_ms=1.0, step_ms=4.0)
    return MeasuredStep(times, exchange)


def test_time_of_two_all_reduces_at_once_counts_once() -> None:
    """gloo works on two buckets at the same time: from 10 to 30 ms, and from 20 to 40 ms."""
    measured = step(Exchange((6_000_000, 6_000_000), (10.0, 20.0), (30.0, 40.0)))
    summary = summarise_exchanges([[measured], [measured]], concurrency=2)
    assert summary is not None
    assert [bucket.all_reduce_ms.median for bucket in summary.buckets] == [20.0, 20.0]
    assert (summary.all_reduce_ms.median, summary.bus_gb_per_s) == (30.0, 0.4)


def test_a_rank_without_times_leaves_it_unknown() -> None:
    """An all-reduce ends when it is complete on every rank."""
    measured = step(Exchange((8,), (10.0,), (30.0,)))
    assert summarise_exchanges([[measured, measured], [measured, step(None)]], 1) is None
    assert summarise_exchanges([[], []], 1) is None
