"""What a column of the results is for an analysis: whether it is a number, a time, and which value of it is better."""

from __future__ import annotations

import math
import typing
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from disttrain.errors import UserError, suggest_name
from disttrain.records.figures import figures_of
from disttrain.records.script_metrics import lower_is_better
from jobs.results.metric_columns import PREFIX
from jobs.results.result import COLUMNS, Requested, Result

# Settings of a machine and ranks: numbers, and none of them a result.
_NO_RESULT = frozenset({"gpu_power_cap_w", "gpu_max_sm_clock_mhz", "gpu_sm_clock_setting_mhz"})
_REQUESTED = frozenset(figure.name for figure in figures_of(Requested))
# What a run measures to the same value on any machine, and what it occupies.
_NO_TIME_UNITS = frozenset({"nats", "MiB", "bytes"})
_NO_TIME_STARTS = ("eval_", "best_eval_", "train_loss")
_COST_UNITS = frozenset({"h", "MiB", "bytes"})


def numeric_figures(columns: Iterable[str]) -> list[str]:
    """The columns that are measured numbers, of which a mean says something.

    Args:
        columns: Names of columns, for example those of all rows.

    Example:
        >>> numeric_figures(["run_id", "world_size", "elapsed_s", "eval_loss", "slowest_rank", "metrics.loss"])
        ['elapsed_s', 'eval_loss', 'metrics.loss']
    """
    return [name for name in columns if name.startswith(PREFIX) or _is_numeric_figure(name)]


def _is_numeric_figure(name: str) -> bool:
    figure = COLUMNS.get(name)
    if figure is None or name in _REQUESTED or name in _NO_RESULT:
        return False
    kinds = typing.get_args(figure.type) or (figure.type,)
    return float in kinds or (int in kinds and bool(figure.unit))


def is_time(column: str) -> bool:
    """Whether a column depends on the speed of the machine: only comparable rows may be compared in it.

    Example:
        >>> is_time("step_ms"), is_time("samples_per_s"), is_time("eval_accuracy"), is_time("metrics.loss")
        (True, True, False, False)
    """
    if column.startswith(PREFIX):
        return column.removeprefix(PREFIX).endswith(("_s", "_ms", "/s", "per_second", "_s.best", "_s.mean"))
    if column not in COLUMNS or column.startswith(_NO_TIME_STARTS):
        return False
    kinds = typing.get_args(COLUMNS[column].type) or (COLUMNS[column].type,)
    unit = COLUMNS[column].unit
    return unit not in _NO_TIME_UNITS and (float in kinds or bool(unit))


def smaller_is_better(column: str) -> bool:
    """Whether the best value of a column is the smallest: of losses, errors, times, GPU-hours and memory.

    Example:
        >>> smaller_is_better("eval_loss"), smaller_is_better("gpu_hours"), smaller_is_better("samples_per_s")
        (True, True, False)
    """
    figure = COLUMNS.get(column)
    if figure is not None and figure.unit in _COST_UNITS:
        return True
    return lower_is_better(column.removeprefix(PREFIX)) or column.endswith("_hours")


def number(row: Result, columns: Mapping[str, Any], column: str) -> float | None:
    """The value of a row that an analysis may use: finite, of a run that completed, and a time only if comparable.

    Args:
        row: The row.
        columns: All its columns, which take long to make.
        column: The name of the column.
    """
    if not row.state.is_success or (is_time(column) and row.figures.get("not_comparable")):
        return None
    value = columns.get(column)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return value


def check_column(column: str, known: Sequence[str], where: str) -> None:
    """Checks that a column exists.

    Raises:
        UserError: It does not; the message names a column that is close.
    """
    if column not in known:
        hint = suggest_name(column, known, "docs/results.md has all columns", cutoff=0.5)
        raise UserError(f"unknown column {column!r}", where=where, hint=hint)


def sorted_places(rows: Sequence[Mapping[str, Any]], order: str) -> list[int]:
    """The places of rows in the order of one column; rows without a value are last.

    Args:
        rows: The columns of each row.
        order: The name of the column; with a minus before it, the largest value is first.

    Raises:
        UserError: The column does not exist.

    Example:
        >>> sorted_places([{"lr": 2.0}, {"lr": None}, {"lr": 3.0}], "-lr")
        [2, 0, 1]
    """
    column = order.removeprefix("-")
    check_column(column, list(dict.fromkeys(name for row in rows for name in row)), "--sort")
    known = [place for place, row in enumerate(rows) if row.get(column) is not None]
    known.sort(key=lambda place: _order_key(rows[place][column]), reverse=order.startswith("-"))
    return [*known, *(place for place, row in enumerate(rows) if row.get(column) is None)]


def _order_key(value: Any) -> tuple[bool, float, str]:
    """Numbers before texts; other values by their text."""
    if isinstance(value, int | float) and not math.isnan(value):
        return False, float(value), ""
    return True, 0.0, str(value)
