"""Groups of seeds: what is one group, and their figures by hand."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from jobs.analysis.seeds import group_by_seed, group_rows, left_out
from jobs.results.result import Result
from tests.jobs.results.rows import make_result


def run(lr: float, seed: int, state: str = "COMPLETED", **columns: Any) -> Result:
    """A run of a sweep over lr and seed."""
    return make_result(
        f"1x1-{seed}{lr}", f"1x1 lr={lr} seed={seed}", varied={"lr": lr, "seed": seed}, state=state, **columns
    )


def test_statistics_by_hand() -> None:
    rows = [run(0.1, seed, eval_accuracy=value) for seed, value in ((1, 0.90), (2, 0.92), (3, 0.97))]
    (group,) = group_rows(group_by_seed(rows))
    assert (group["label"], group["runs"], group["completed"], group["failed"]) == ("1x1 lr=0.1", 3, 3, 0)
    assert (group["seeds"], group["lr"]) == (("1", "2", "3"), 0.1)
    assert "seed" not in group
    # The deviations are -0.03, -0.01, 0.04: their squares sum up to 0.0026, and 0.0026 / 2 is 0.0013.
    assert group["eval_accuracy"] == pytest.approx(0.93)
    assert group["eval_accuracy.std"] == pytest.approx(0.0360555)
    assert group["eval_accuracy.count"] == 3
    # 4.3027 x 0.0360555 / 1.7320508 = 0.089567
    assert group["eval_accuracy.low"] == pytest.approx(0.840433, abs=1e-6)
    assert group["eval_accuracy.high"] == pytest.approx(1.019567, abs=1e-6)


def test_statistics_of_scipy() -> None:
    stats = pytest.importorskip("scipy.stats")
    values = [1.5, 2.25, 1.75, 4.0]
    (group,) = group_rows(group_by_seed([run(0.1, seed, eval_loss=value) for seed, value in enumerate(values)]))
    low, high = stats.t.interval(0.95, 3, loc=stats.tmean(values), scale=stats.sem(values))
    assert (group["eval_loss.low"], group["eval_loss.high"]) == (pytest.approx(low), pytest.approx(high))
    assert group["eval_loss.std"] == pytest.approx(stats.tstd(values))


@pytest.mark.parametrize(("count", "has_deviation", "has_interval"), [(1, False, False), (2, True, False), (3, 1, 1)])
def test_few_seeds_have_no_interval(count: int, has_deviation: bool, has_interval: bool) -> None:
    (group,) = group_rows(group_by_seed([run(0.1, seed, eval_loss=1.0 + seed) for seed in range(count)]))
    assert (group["eval_loss.std"] is not None) == has_deviation
    assert (group["eval_loss.low"] is not None, group["eval_loss.high"] is not None) == (has_interval, has_interval)


def test_other_values_are_other_groups() -> None:
    rows = [run(lr, seed) for lr in (0.1, 0.2) for seed in (1, 2)]
    elsewhere = dataclasses.replace(
        rows[0], requested=dataclasses.replace(rows[0].requested, run_id="2x1-x", label="2x1", allocation="2x1")
    )
    dropped = make_result("1x1-d", "1x1 lr=0.1 seed=9", varied={"lr": 0.1, "seed": 9}, dropped=True)
    groups = group_by_seed([*rows, elsewhere, dropped])
    assert [(group.label, len(group.rows)) for group in groups] == [("1x1 lr=0.1", 2), ("1x1 lr=0.2", 2), ("2x1", 1)]


def test_failed_runs_are_counted_and_have_no_values() -> None:
    rows = [run(0.1, 1, elapsed_s=10), run(0.1, 2, "FAILED", elapsed_s=1), run(0.1, 3, "RUNNING", elapsed_s=5)]
    (group,) = group_rows(group_by_seed(rows))
    assert (group["runs"], group["completed"], group["failed"]) == (3, 1, 1)
    assert (group["elapsed_s"], group["elapsed_s.count"]) == (10.0, 1)
    assert (group["step_ms"], group["step_ms.count"]) == (None, 0)


def test_times_that_are_not_comparable_are_left_out() -> None:
    shared: dict[str, Any] = {"not_comparable": ("ranks shared a GPU",)}
    rows = [
        run(0.1, 1, step_ms=10.0, eval_accuracy=0.5, not_comparable=()),
        run(0.1, 2, step_ms=90.0, eval_accuracy=0.7, **shared),
    ]
    groups = group_by_seed(rows)
    (group,) = group_rows(groups)
    assert (group["step_ms"], group["step_ms.count"]) == (10.0, 1)
    assert (group["eval_accuracy"], group["eval_accuracy.count"]) == (pytest.approx(0.6), 2)
    assert left_out(groups) == [f"times are in no mean: ranks shared a GPU: {rows[1].name}"]


def test_metrics_of_scripts_have_statistics() -> None:
    rows = [run(0.1, seed, metrics={"loss": {"last": float(seed), "best": 0.5, "mean": 2.0}}) for seed in (1, 3)]
    (group,) = group_rows(group_by_seed(rows))
    assert (group["metrics.loss"], group["metrics.loss.count"], group["metrics.loss.best"]) == (2.0, 2, 0.5)
