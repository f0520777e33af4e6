"""The summary of a script's run has the figures of all ranks."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from disttrain.analysis.run_summary import Sums
from disttrain.command.report import RankFigures, Report
from disttrain.command.summary import summarise_reports
from disttrain.records.rank_types import RankTelemetry
from disttrain.records.record_types import TelemetryRecord
from disttrain.records.script_metrics import ScriptMetrics
from disttrain.records.start_types import StartRecord
from disttrain.records.summary_types import SUMMARY_FIGURES

START = StartRecord(
    time_s=0.0, rank=0, world_size=2, local_rank=0, node_rank=0, host="n1", pid=1, job_id="7", restart_count=0,
    first_step=1, device="cuda:0", device_name="NVIDIA H100", gpu_uuid="a", backend=None, shared_gpu=False,
    folded=False, threads=4, cpus=4, versions={}, parameters=0, train_examples=0, eval_examples=0, notices=(),
)  # fmt: skip


def report(rank: int, energy_j: float | None, metrics: dict[str, Any], **start: Any) -> Report:
    figures = RankFigures(
        dataclasses.replace(START, rank=rank, local_rank=rank, **start),
        Sums(0.0, 0.0, 0.0, energy_j=energy_j or 0.0, energy_ranks=float(energy_j is not None)),
        RankTelemetry(gpu_util_percent=50.0 + rank, gpu_power_w=None, gpu_memory_peak_mib=100.0),
    )
    sent = Report(0, warned=False, terminated=False, ranks=(figures,), metrics=ScriptMetrics(metrics, steps=rank))
    return Report.from_message(sent.to_message())


def values(mean: float) -> dict[str, float | None]:
    return {"last": mean, "mean": mean, "best": mean, "min": mean, "max": mean, "count": 1}


def summary_of(*reports: Report) -> dict[str, Any]:
    samples = [TelemetryRecord(time_s=float(time), gpu_power_w=300.0) for time in range(3)]
    return summarise_reports([reports[0].ranks[0].start, *samples], dict(enumerate(reports)), 1)


def test_two_gpus() -> None:
    reports = [
        report(0, 10.0, {"loss": values(0.5)}),
        report(1, 20.0, {"loss": values(0.1), "samples_per_s": values(8.0)}, gpu_uuid="b"),
    ]
    summary = summary_of(*reports)
    assert set(summary) <= set(SUMMARY_FIGURES)
    assert (summary["gpu_energy_j"], summary["comparable"], summary["shared_gpu"]) == (30.0, True, False)
    assert (summary["gpu_util_mean_percent"], summary["gpu_util_min_rank"]) == (50.5, 0)
    assert summary["gpu_power_w"] == 300.0
    assert (summary["samples_per_s"], summary["samples_per_s_per_gpu"], summary["steps"]) == (8.0, 4.0, 1)
    assert summary["metrics"] == {"loss": values(0.5), "samples_per_s": values(8.0)}
    assert (summary["mixed_ranks"], summary["train_s"], summary["notices"]) == ((), None, ())


def test_ranks_that_share_a_gpu_count_its_energy_once() -> None:
    summary = summary_of(report(0, 10.0, {}), report(1, 10.5, {}))
    assert (summary["gpu_energy_j"], summary["comparable"], summary["shared_gpu"]) == (10.0, False, True)
    assert "samples_per_s" in summary
    assert summary["samples_per_s"] is None


@pytest.mark.parametrize("change", [{"gpu_uuid": "b", "energy_j": None}, {"host": "n2", "energy_j": 5.0}])
def test_energy_of_other_boards(change: dict[str, Any]) -> None:
    summary = summary_of(report(0, 10.0, {}), report(1, metrics={}, **change))
    assert summary["gpu_energy_j"] == (15.0 if "host" in change else None)
    assert summary["comparable"]


def test_different_ranks_are_named() -> None:
    summary = summary_of(report(0, 1.0, {}), report(1, 1.0, {}, gpu_uuid="b", device_name="NVIDIA A100"))
    assert summary["mixed_ranks"] == ("device_name",)
