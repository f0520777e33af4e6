"""The summary of hand-made records."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import pytest

from disttrain.analysis.measured_steps import MeasuredStep
from disttrain.analysis.run_summary import Sums, own_sums, rank_telemetry, summarise
from disttrain.records.rank_types import RankTelemetry
from disttrain.records.record_types import (
    CrossCheckRecord,
    EndRecord,
    EvalRecord,
    LinkRecord,
    Record,
    StartRecord,
    StartupRecord,
    StepRecord,
    TelemetryRecord,
)
from disttrain.records.summary_types import SUMMARY_FIGURES, Summary

START = StartRecord(
    time_s=0.0,
    rank=0,
    world_size=2,
    local_rank=0,
    node_rank=0,
    host="n1",
    pid=1,
    job_id="7",
    restart_count=0,
    first_step=1,
    device="cpu",
    device_name="a CPU",
    backend="gloo",
    shared_gpu=False,
    folded=True,
    threads=1,
    versions={},
    parameters=10,
    train_examples=20,
    eval_examples=4,
    notices=("a notice",),
)
END = EndRecord(time_s=9.0, steps=20, train_s=3.0)
STARTUPS = (
    StartupRecord(import_s=2.0, time_to_first_step_s=9.0),
    StartupRecord(import_s=3.0, time_to_first_step_s=8.0),
)


def step(number: int, *, loss: float | None = 1.0, examples: int = 2) -> StepRecord:
    return StepRecord(
        step=number,
        epoch=0,
        start_s=0.0,
        loss=loss,
        lr=0.1,
        examples=examples,
        data_ms=1.0,
        forward_ms=2.0,
        backward_ms=3.0,
        optimizer_ms=4.0,
        step_ms=10.0 if number > 5 else 1000.0,
    )


def test_summary_of_two_ranks() -> None:
    records: list[Record] = [START, *(step(number) for number in range(1, 19))]
    records += [step(19, loss=4.0, examples=3), step(20, loss=None, examples=0)]
    records += [EvalRecord(step=20, loss=0.5, accuracy=0.75, examples=4, elapsed_s=1.0), END]
    own = own_sums(records, warmup_steps=5)
    assert own == Sums(tail_loss=12.0, tail_examples=3, measured_examples=13 * 2 + 3, energy_j=0.0, energy_ranks=0.0)
    both = Sums(tail_loss=13.0, tail_examples=4, measured_examples=60, energy_j=0.0, energy_ranks=0.0)
    summary = summarise(records, both, [[], []], startups=STARTUPS, hosts=("n1", "n2"), num_nodes=2, warmup_steps=5)
    assert summary.keys() == SUMMARY_FIGURES.keys()
    assert summary["measured_steps"] == 15
    assert summary["samples_per_s"] == pytest.approx(60 / 0.15)
    assert summary["samples_per_s_per_gpu"] == pytest.approx(30 / 0.15)
    assert (summary["data_ms"], summary["forward_ms"], summary["backward_ms"], summary["optimizer_ms"]) == (1, 2, 3, 4)
    assert (summary["step_ms"], summary["step_p95_ms"], summary["step_min_ms"]) == (10, 10, 10)
    assert (summary["exposed_comm_ms"], summary["overlapped_comm_min_ms"]) == (None, None), "not measured"
    assert summary["train_loss"] == 13 / 4
    assert (summary["eval_loss"], summary["eval_accuracy"], summary["eval_examples"]) == (0.5, 0.75, 4)
    assert not summary["comparable"]
    assert summary["hosts"] == ("n1", "n2")
    assert summary["notices"] == ("a notice",)
    assert (summary["import_s"], summary["slowest_import_rank"]) == (3.0, 1)
    assert (summary["time_to_first_step_s"], summary["slowest_time_to_first_step_rank"]) == (9.0, 0)


def test_the_latest_start_and_evaluation_count() -> None:
    earlier = dataclasses.replace(START, device_name="another CPU", backend=None)
    records: list[Record] = [earlier, step(1), EvalRecord(step=1, loss=None, accuracy=0.25, examples=4, elapsed_s=1.0)]
    records += [dataclasses.replace(START, model_changes=("compact_vocab",)), step(2), step(3)]
    records += [EvalRecord(step=3, loss=0.5, accuracy=0.75, examples=4, elapsed_s=1.0), END]
    summary = summarise(
        records, own_sums(records, 1), [[], []], startups=STARTUPS, hosts=("n1", "n2"), num_nodes=1, warmup_steps=1
    )
    assert (summary["device_name"], summary["backend"]) == ("a CPU", "gloo")
    assert summary["model_changes"] == ("compact_vocab",)
    assert (summary["eval_loss"], summary["eval_accuracy"]) == (0.5, 0.75)
    assert (summary["measured_steps"], summary["steps"], summary["train_s"]) == (1, 20, 3.0)


def test_cross_check_is_in_the_summary() -> None:
    check = CrossCheckRecord(
        passes=10, backward_ms=9.0, no_sync_backward_ms=4.0, no_sync_exposed_ms=5.0, exposed_comm_ms=4.0,
        exchange_ms=8.0, is_check=False, ddp_exposed_ms=None, elapsed_s=1.0,
    )  # fmt: skip
    figures = []
    for exposed_ms in (4.0, 0.0):
        records: list[Record] = [START, dataclasses.replace(check, exposed_comm_ms=exposed_ms), step(1), END]
        summary = summarise(
            records, own_sums(records, 0), [[], []], startups=STARTUPS, hosts=("a", "b"), num_nodes=1, warmup_steps=0
        )
        names = ("check_exposed_ms", "no_sync_exposed_ms", "no_sync_difference", "no_sync_is_check", "ddp_exposed_ms")
        figures.append(tuple(summary[name] for name in names))
    assert figures == [(4.0, 5.0, 0.25, False, None), (0.0, 5.0, None, False, None)]


def test_unmeasured_figures_are_none() -> None:
    records: list[Record] = [START, step(1), END]
    summary = summarise(
        records, own_sums(records, 1), [[], []], startups=STARTUPS, hosts=("n1", "n2"), num_nodes=1, warmup_steps=1
    )
    assert summary["measured_steps"] == 0
    assert summary["samples_per_s"] is None
    assert summary["samples_per_s_per_gpu"] is None
    assert summary["step_ms"] is None
    assert (summary["no_sync_exposed_ms"], summary["no_sync_difference"], summary["gpu_throttle"]) == (None, None, None)
    assert summary["eval_accuracy"] is None
    assert summary["train_loss"] == 1.0


def test_link_bandwidth_of_the_largest_size() -> None:
    """With a token bucket, the sizes that fit into it are the fastest."""
    links = [
        LinkRecord(
            size_bytes=size, repeats=40, median_ms=median_ms, p95_ms=9.0, min_ms=0.1, algorithm_gb_per_s=speed,
            bus_gb_per_s=speed,
        )
        for size, median_ms, speed in ((4096, 0.5, 0.1), (16384, 0.6, 9.0), (65536, 6.0, 3.0))
    ]  # fmt: skip
    records: list[Record] = [START, *links, EndRecord(time_s=1.0, steps=0, train_s=0.0)]
    summary = summarise(
        records, own_sums(records, 0), [[], []], startups=STARTUPS, hosts=("a", "b"), num_nodes=2, warmup_steps=0
    )
    assert (summary["link_latency_ms"], summary["link_bus_gb_per_s"]) == (0.5, 3.0)
    assert (summary["steps"], summary["samples_per_s"], summary["exchange_ms"]) == (0, None, None)


def sample(energy_j: float | None, **figures: Any) -> TelemetryRecord:
    source = None if energy_j is None else "counter"
    return TelemetryRecord(time_s=1.0, gpu_energy_j=energy_j, gpu_energy_source=source, **figures)


def test_samples_of_the_last_start() -> None:
    earlier: list[Record] = [START, sample(0.0), sample(900.0, gpu_util_percent=1.0), step(1)]
    records = [*earlier, START, sample(0.0, gpu_util_percent=0.0), step(2), step(3)]
    records += [
        sample(100.0, gpu_util_percent=60.0, gpu_memory_used_mib=7.0, gpu_throttle=("sw_power_cap",)),
        sample(250.0, gpu_util_percent=80.0, gpu_memory_used_mib=5.0, gpu_throttle=()),
        sample(None, error="GPU is lost"),
        END,
    ]
    own = own_sums(records, 0)
    assert (own.energy_j, own.energy_ranks) == (1150.0, 1.0)
    summary = summarise(
        records, two(own, own), [[], []], startups=STARTUPS, hosts=("n1", "n2"), num_nodes=1, warmup_steps=0
    )
    assert (summary["gpu_util_percent"], summary["gpu_memory_peak_mib"]) == (70.0, 7.0)
    assert (summary["gpu_throttle"], summary["gpu_power_w"]) == (("sw_power_cap",), None)
    assert (summary["gpu_energy_j"], summary["gpu_energy_source"]) == (2300.0, "counter")
    assert summary["notices"] == ("a notice", "telemetry: 1 samples are incomplete; the last error: GPU is lost")


def two(one: Sums, other: Sums) -> Sums:
    """The sums over two ranks."""
    return Sums(*map(sum, zip(dataclasses.astuple(one), dataclasses.astuple(other), strict=True)))


@pytest.mark.parametrize(
    ("first_j", "second_j", "shared", "together_j"),
    [(100.0, 50.0, False, 150.0), (100.0, 101.0, True, 100.0), (100.0, None, False, None), (None, 100.0, True, None)],
)
def test_a_shared_gpu_counts_once(
    first_j: float | None, second_j: float | None, shared: bool, together_j: float | None
) -> None:
    ranks: list[list[Record]] = [[START, step(1), sample(energy_j), END] for energy_j in (first_j, second_j)]
    sums = two(own_sums(ranks[0], 0), own_sums(ranks[1], 0, first_on_gpu=not shared))
    summary = summarise(ranks[0], sums, [[], []], startups=STARTUPS, hosts=("n1", "n1"), num_nodes=1, warmup_steps=0)
    assert summary["gpu_energy_j"] == together_j


def summary_of_ranks(before: Sequence[Record] = (), **options: Any) -> Summary:
    records: list[Record] = [*before, START, step(1), END]
    return summarise(
        records, own_sums(records, 0), [[], []], startups=STARTUPS, hosts=("n1", "n2"), num_nodes=2, warmup_steps=0,
        **options,
    )  # fmt: skip


@pytest.mark.parametrize(("folded", "named"), [(False, True), (True, False)])
def test_a_rank_that_shares_its_host_is_not_called_slow(folded: bool, named: bool) -> None:
    """Ranks of a rehearsal compete for the same cores."""
    records: list[Record] = [dataclasses.replace(START, folded=folded), *map(step, range(1, 31)), END]
    fast = [MeasuredStep(step(number), None) for number in range(1, 31)]
    slow = [MeasuredStep(dataclasses.replace(step(number), forward_ms=99.0), None) for number in range(1, 31)]
    summary = summarise(
        records, own_sums(records, 0), [fast, slow], startups=STARTUPS, hosts=("n1", "n2"), num_nodes=2, warmup_steps=0
    )
    assert (summary["slowest_rank"], summary["comparable"]) == (1, not folded)
    assert any(notice.startswith("rank 1 on n2 is slow") for notice in summary["notices"]) == named


@pytest.mark.parametrize(
    ("changes", "mixed"),
    [
        ({}, ()),
        ({"rank": 1, "host": "n2", "device": "cuda:1", "gpu_uuid": "x", "cpu_affinity": "8-15"}, ()),
        ({"device_name": "A100"}, ("device_name",)),
        ({"versions": {"torch": "2.11"}, "driver_version": "535"}, ("versions", "driver_version")),
        ({"gpu_power_cap_w": 300.0, "cpus": 1}, ("gpu_power_cap_w", "cpus")),
        ({"versions": {**START.versions, "submitit": "0.1"}}, ()),  # it only starts the ranks
    ],
)
def test_what_differs_between_ranks_or_starts(changes: dict[str, Any], mixed: tuple[str, ...]) -> None:
    start = dataclasses.replace(START, driver_version="570", gpu_power_cap_w=700.0, cpus=8)
    other = dataclasses.replace(start, **changes)
    assert summary_of_ranks(starts=(start, other))["mixed_ranks"] == mixed
    assert summary_of_ranks(before=[other, step(1), start])["mixed_starts"] == mixed


def test_an_unknown_fact_differs_in_no_start() -> None:
    """A start of an earlier release has no transport and no driver version."""
    older = dataclasses.replace(START, transport=None, driver_version=None)
    known = dataclasses.replace(START, transport="IB", driver_version="570")
    assert summary_of_ranks(before=[older, step(1), known, step(2)])["mixed_starts"] == ()
    assert summary_of_ranks(before=[dataclasses.replace(START, world_size=4)])["mixed_starts"] == ("world_size",)


def test_switches_above_the_nodes_are_counted() -> None:
    """SLURM_TOPOLOGY_ADDR has the switches from the top, then the node."""

    def count(*addresses: str | None) -> int | None:
        starts = [dataclasses.replace(START, topology_addr=address) for address in addresses]
        switches: int | None = summary_of_ranks(starts=starts)["leaf_switches"]
        return switches

    assert count("s0.s1.n1", "s0.s1.n2") == 1
    assert count("s0.s1.n1", "s0.s2.n2") == 2
    assert count("n1", "n2") is None
    assert count("s0.s1.n1", None) is None
    assert summary_of_ranks()["leaf_switches"] is None


def gpu_sample(util: float | None, power: float | None, memory: float | None) -> TelemetryRecord:
    return TelemetryRecord(time_s=0.0, gpu_util_percent=util, gpu_power_w=power, gpu_memory_used_mib=memory)


def test_telemetry_of_all_ranks() -> None:
    """The sample before the first step does not count; the least used GPU and the fullest are named."""
    samples = (
        [gpu_sample(0, 1, 9), gpu_sample(80, 400, 10), gpu_sample(100, 600, 30)],
        [gpu_sample(0, 1, 9), gpu_sample(20, 100, 50)],
    )
    ranks = [rank_telemetry([START, *rank_samples]) for rank_samples in samples]
    assert ranks[0] == RankTelemetry(gpu_util_percent=90.0, gpu_power_w=500.0, gpu_memory_peak_mib=30.0)
    summary = summary_of_ranks(telemetry=ranks)
    expected = {
        "gpu_util_mean_percent": 55.0, "gpu_util_min_percent": 20.0, "gpu_util_min_rank": 1, "gpu_util_min_host": "n2",
        "gpu_power_mean_w": 300.0, "gpu_power_min_w": 100.0, "gpu_power_min_rank": 1, "gpu_power_min_host": "n2",
        "gpu_memory_peak_mean_mib": 40.0, "gpu_memory_peak_max_mib": 50.0, "gpu_memory_peak_max_rank": 1,
        "gpu_memory_peak_max_host": "n2",
    }  # fmt: skip
    assert {name: summary[name] for name in expected} == expected


def test_telemetry_of_a_rank_that_is_not_known() -> None:
    known = RankTelemetry(gpu_util_percent=90.0, gpu_power_w=500.0, gpu_memory_peak_mib=30.0)
    for telemetry in ((known, RankTelemetry()), ()):
        summary = summary_of_ranks(telemetry=telemetry)
        for name in ("gpu_util_mean_percent", "gpu_power_min_w", "gpu_power_min_host", "gpu_memory_peak_max_rank"):
            assert summary[name] is None
