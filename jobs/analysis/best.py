"""The best runs of a sweep by one column; runs that differ in their seed only count as one, by their mean."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from disttrain.errors import UserError
from jobs.analysis.columns import check_column, is_time, smaller_is_better
from jobs.analysis.seeds import Group, group_by_seed
from jobs.analysis.student_t import interval
from jobs.results.metric_columns import PREFIX
from jobs.results.result import Result

_BEST_EVALUATION = {"eval_loss": "best_eval_loss", "eval_accuracy": "best_eval_accuracy"}


@dataclass(frozen=True)
class Place:
    """A run, or a group of seeds, with its place.

    Attributes:
        rank: The place, from 1; equal values share it.
        label: The label of the run, or of the group.
        value: The value, or the mean of the group.
        interval: The 95 % interval of the mean; None below three runs.
        measured: The number of runs with a value.
        runs: The number of runs.
        run_ids: The ids of all its runs.
    """

    rank: int
    label: str
    value: float
    interval: tuple[float, float] | None
    measured: int
    runs: int
    run_ids: tuple[str, ...]


@dataclass(frozen=True)
class Best:
    """The places by one column.

    Attributes:
        column: The column.
        is_smallest: Whether the smallest value is the best.
        places: The places, the best first.
        without: The name of each run without a value, and the reason.
    """

    column: str
    is_smallest: bool
    places: tuple[Place, ...]
    without: tuple[tuple[str, str], ...]


def find_best(rows: Sequence[Result], column: str, *, smallest: bool | None = None, best_eval: bool = False) -> Best:
    """The places of all runs by a column.

    Args:
        rows: The rows of a sweep; dropped runs have no place.
        column: The name of a column of numbers. The figures of an evaluation are those of the last one.
        smallest: Whether the smallest value is the best; None for what the name of the column says.
        best_eval: Whether to use the best evaluation of each run instead of its last.

    Raises:
        UserError: The column does not exist, or holds no numbers, or has no best evaluation.
    """
    known = list(dict.fromkeys(name for row in rows for name in row.columns()))
    check_column(column, known, "--by")
    if best_eval:
        column = _best_evaluation(column, known)
    _check_numbers(rows, column)
    if smallest is None:
        smallest = smaller_is_better(column)
    groups = group_by_seed(rows)
    places = _places(groups, column, smallest)
    without = tuple((row.name, _why(row, column)) for group in groups for row in group.rows if not _has(row, column))
    return Best(column, smallest, places, without)


def _has(row: Result, column: str) -> bool:
    return bool(Group((row,)).values(column))


def _places(groups: Sequence[Group], column: str, smallest: bool) -> tuple[Place, ...]:
    """The groups with a value, the best first; equal values share a rank."""
    found = [(statistics.fmean(values), group) for group in groups if (values := group.values(column))]
    found.sort(key=lambda pair: pair[0], reverse=not smallest)
    means = [mean for mean, _ in found]
    return tuple(
        Place(
            rank=means.index(mean) + 1,
            label=group.label,
            value=mean,
            interval=interval(group.values(column)),
            measured=len(group.values(column)),
            runs=len(group.rows),
            run_ids=tuple(row.run_id for row in group.rows),
        )
        for mean, group in found
    )


def _best_evaluation(column: str, known: Sequence[str]) -> str:
    """The column with the best evaluation of a figure."""
    best = _BEST_EVALUATION.get(column)
    if column.startswith(PREFIX):
        best = f"{column.removesuffix('.last')}.best"
    if best is None or best not in known:
        names = ", ".join(_BEST_EVALUATION)
        hint = f"{names} and the metrics of scripts have one"
        raise UserError(f"the results have no best evaluation of {column}", where="--best-eval", hint=hint)
    return best


def _check_numbers(rows: Sequence[Result], column: str) -> None:
    values = [value for row in rows if (value := row.columns().get(column)) is not None]
    wrong = [value for value in values if isinstance(value, bool) or not isinstance(value, int | float)]
    if wrong:
        raise UserError(f"{column} holds no numbers, for example {wrong[0]!r}", where="--by", hint="name a figure")


def _why(row: Result, column: str) -> str:
    """Why a run has no value of a column."""
    if not row.state.is_success:
        return ": ".join(filter(None, (row.state.value, row.scheduled.reason)))
    if is_time(column) and (reasons := row.figures.get("not_comparable")):
        return f"not comparable: {'; '.join(reasons)}"
    return f"it completed without {column}"
