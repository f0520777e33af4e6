"""Exposed and overlapped communication and bandwidth, on hand-made steps."""

from __future__ import annotations

import pytest

from disttrain.analysis.bandwidth import bus_bandwidth
from disttrain.analysis.comm_overlap import Exchange, all_reduce_spans, covered_ms


def test_one_bucket_overlaps_nothing() -> None:
    exchange = Exchange((1000,), (30.0,), (50.0,))
    assert exchange.overlapped_comm_ms() == 0.0
    assert exchange.exposed_comm_ms(backward_end_ms=51.0) == 21.0


def test_buckets_overlap_remaining_computation() -> None:
    # The first is done long before the last is ready; the second is in progress at that time; the third is exposed.
    exchange = Exchange((1, 1, 1), (10.0, 20.0, 40.0), (15.0, 45.0, 60.0))
    assert exchange.computed_ms == 40.0
    assert exchange.overlapped_comm_ms() == 5.0 + 20.0
    assert exchange.exposed_comm_ms(60.0) == 20.0


def test_overlapping_buckets_count_once() -> None:
    exchange = Exchange((1, 1, 1), (10.0, 12.0, 40.0), (30.0, 20.0, 50.0))
    assert exchange.overlapped_comm_ms() == 20.0


def test_an_all_reduce_waits_for_ranks_and_link() -> None:
    fast = Exchange((1, 1), (10.0, 20.0), (35.0, 50.0))
    slow = Exchange((1, 1), (25.0, 30.0), (35.5, 50.5))
    assert all_reduce_spans([fast, slow], [0.0, 0.0]) == ((25.0, 35.5), (35.5, 50.5))
    # The same case, but the slow rank's step began 5 ms later on the common clock. Its times count from there.
    late = Exchange((1, 1), (20.0, 25.0), (30.5, 45.5))
    assert all_reduce_spans([fast, late], [0.0, 5.0]) == ((25.0, 35.5), (35.5, 50.5))


def test_concurrent_all_reduces() -> None:
    exchange = Exchange((1, 1, 1), (10.0, 12.0, 13.0), (30.0, 20.0, 40.0))
    spans = all_reduce_spans([exchange, exchange], [0.0, 0.0], concurrency=2)
    assert spans == ((10.0, 30.0), (12.0, 20.0), (20.0, 40.0))
    assert covered_ms(spans) == 30.0


@pytest.mark.parametrize(("world_size", "factor"), [(2, 1.0), (4, 1.5), (8, 1.75)])
def test_bus_bandwidth_agrees_with_nccl_tests(world_size: int, factor: float) -> None:
    assert bus_bandwidth(4e9, 1000.0, world_size) == pytest.approx(4 * factor)
