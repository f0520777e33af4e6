"""The best run: direction, ties, seeds, evaluations, and runs without the figure."""

from __future__ import annotations

from typing import Any

import pytest

from disttrain.errors import UserError
from jobs.analysis.best import find_best
from jobs.analysis.columns import sorted_places
from jobs.results.result import Result
from tests.jobs.results.rows import make_result


def run(lr: float, state: str = "COMPLETED", **columns: Any) -> Result:
    return make_result(f"1x1-{lr}", f"1x1 lr={lr}", varied={"lr": lr}, state=state, **columns)


def labels(rows: list[Result], column: str, **options: Any) -> list[tuple[int, str]]:
    return [(place.rank, place.label) for place in find_best(rows, column, **options).places]


def test_largest_accuracy_and_smallest_loss_and_time() -> None:
    rows = [
        run(1, eval_accuracy=0.8, eval_loss=0.3, step_ms=9.0),
        run(2, eval_accuracy=0.9, eval_loss=0.2, step_ms=5.0),
    ]
    for column in ("eval_accuracy", "eval_loss", "step_ms"):
        assert labels(rows, column) == [(1, "1x1 lr=2"), (2, "1x1 lr=1")]
    assert labels(rows, "eval_accuracy", smallest=True)[0] == (1, "1x1 lr=1")
    assert labels(rows, "eval_loss", smallest=False)[0] == (1, "1x1 lr=1")


def test_samples_per_s_is_no_time() -> None:
    assert labels([run(1, samples_per_s=10.0), run(2, samples_per_s=20.0)], "samples_per_s")[0] == (1, "1x1 lr=2")


def test_equal_values_share_a_rank() -> None:
    rows = [run(lr, eval_accuracy=value) for lr, value in ((1, 0.5), (2, 0.9), (3, 0.9), (4, 0.1))]
    assert labels(rows, "eval_accuracy") == [(1, "1x1 lr=2"), (1, "1x1 lr=3"), (3, "1x1 lr=1"), (4, "1x1 lr=4")]


def test_last_evaluation_unless_the_best_is_asked_for() -> None:
    rows = [
        run(1, eval_accuracy=0.8, best_eval_accuracy=0.95, metrics={"f1": {"last": 0.1, "best": 0.9, "mean": 0.5}}),
        run(2, eval_accuracy=0.9, best_eval_accuracy=0.91, metrics={"f1": {"last": 0.2, "best": 0.3, "mean": 0.5}}),
    ]
    assert labels(rows, "eval_accuracy")[0] == (1, "1x1 lr=2")
    assert labels(rows, "eval_accuracy", best_eval=True)[0] == (1, "1x1 lr=1")
    assert labels(rows, "metrics.f1")[0] == (1, "1x1 lr=2")
    assert labels(rows, "metrics.f1", best_eval=True)[0] == (1, "1x1 lr=1")
    with pytest.raises(UserError, match="no best evaluation of step_ms"):
        find_best(rows, "step_ms", best_eval=True)


def test_runs_without_the_figure_have_a_reason() -> None:
    rows = [
        run(1, step_ms=5.0), run(2), run(3, "FAILED", reason="out of memory"), run(4, "PENDING"),
        run(5, step_ms=1.0, not_comparable=("ranks shared a GPU",)), run(6, step_ms=float("nan")),
    ]  # fmt: skip
    best = find_best(rows, "step_ms")
    assert [place.label for place in best.places] == ["1x1 lr=1"]
    assert [reason for _, reason in best.without] == [
        "it completed without step_ms", "FAILED: out of memory", "PENDING", "not comparable: ranks shared a GPU",
        "it completed without step_ms",
    ]  # fmt: skip


def test_seeds_count_by_their_mean() -> None:
    rows = [
        make_result(f"1x1-{lr}{seed}", f"1x1 lr={lr} seed={seed}", varied={"lr": lr, "seed": seed},
                    state="COMPLETED" if value else "FAILED", eval_accuracy=value)
        for lr, seed, value in ((1, 1, 0.99), (1, 2, 0.61), (2, 1, 0.85), (2, 2, 0.85), (2, 3, None))
    ]  # fmt: skip
    first, second = find_best(rows, "eval_accuracy").places
    assert (first.label, first.value, first.measured, first.runs) == ("1x1 lr=2", 0.85, 2, 3)
    assert second.label == "1x1 lr=1"
    assert second.value == pytest.approx(0.8)


def test_a_column_that_does_not_exist() -> None:
    with pytest.raises(UserError, match=r"--by: unknown column 'eval_acuracy' \(did you mean eval_accuracy\?"):
        find_best([run(1)], "eval_acuracy")
    with pytest.raises(UserError, match="state holds no numbers"):
        find_best([run(1)], "state")


def test_sort_puts_missing_values_last() -> None:
    rows: list[dict[str, Any]] = [{"x": 2}, {"x": None}, {"x": 10}, {"x": 1.5}, {}]
    assert sorted_places(rows, "x") == [3, 0, 2, 1, 4]
    assert sorted_places(rows, "-x") == [2, 0, 3, 1, 4]
    with pytest.raises(UserError, match="--sort: unknown column 'y'"):
        sorted_places(rows, "-y")


def test_equal_rows_stay_in_their_order() -> None:
    assert sorted_places([{"x": 1}, {"x": 2}, {"x": 1}], "-x") == [1, 0, 2]
