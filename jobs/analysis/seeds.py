"""Groups of runs that differ in their seed only: mean, standard deviation, count and interval of each figure."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from jobs.analysis.columns import number, numeric_figures
from jobs.analysis.student_t import interval
from jobs.planning.labels import value_text
from jobs.planning.sweep_sections import canonical
from jobs.results.metric_columns import metric_columns
from jobs.results.result import COLUMNS, Result, column_name
from jobs.slurm.states import JobPhase
from jobs.storage.run_lookup import list_names

SEED = "seed"
_OWN = ("runs", "completed", "failed", "seeds")  # the columns that only a group has


@dataclass(frozen=True)
class Group:
    """Runs that are equal in all but the seed.

    Attributes:
        rows: The runs, in the order of the plan.
    """

    rows: tuple[Result, ...]

    @cached_property
    def label(self) -> str:
        """The label of its runs without their seed; of one run, its complete label."""
        first = self.rows[0]
        if len(self.rows) == 1:
            return first.label
        return " ".join(part for part in first.label.split(" ") if part != f"{SEED}={value_text(_seed(first))}")

    @cached_property
    def completed(self) -> tuple[Result, ...]:
        return tuple(row for row in self.rows if row.state.is_success)

    @cached_property
    def failed(self) -> int:
        """The number of runs that ended without success."""
        return sum(row.phase is JobPhase.FINISHED and not row.state.is_success for row in self.rows)

    @cached_property
    def _columns(self) -> list[dict[str, Any]]:
        return [row.columns() for row in self.rows]

    def values(self, column: str) -> list[float]:
        """The known values of a figure, without times of runs that are not comparable."""
        pairs = zip(self.rows, self._columns, strict=True)
        return [value for row, columns in pairs if (value := number(row, columns, column)) is not None]

    def columns(self, figures: Sequence[str]) -> dict[str, Any]:
        """The row of the group.

        Args:
            figures: The figures of which it has the statistics.
        """
        first = self.rows[0]
        varied = {_varied_name(name): value for name, value in first.varied.items() if name != SEED}
        known = {
            "label": self.label,
            "allocation": first.requested.allocation,
            "world_size": first.requested.world_size,
            **varied,
            "runs": len(self.rows),
            "completed": len(self.completed),
            "failed": self.failed,
            "seeds": tuple(value_text(_seed(row)) for row in self.rows if _seed(row) is not None),
        }
        for name in figures:
            known |= _statistics(name, self.values(name))
        return known


def group_by_seed(rows: Sequence[Result]) -> tuple[Group, ...]:
    """The runs that the sweep file still has, in groups that are equal in all but the seed."""
    members: dict[tuple[str, bool, str], list[Result]] = {}
    for row in rows:
        if not row.dropped:
            config = canonical({name: value for name, value in row.config.items() if name != SEED})
            members.setdefault((row.requested.allocation, row.is_command, config), []).append(row)
    return tuple(Group(tuple(found)) for found in members.values())


def group_rows(groups: Sequence[Group]) -> list[dict[str, Any]]:
    """The rows of groups, each with every numeric figure: ``X``, ``X.std``, ``X.count``, ``X.low``, ``X.high``."""
    metrics = (name for group in groups for row in group.rows for name in metric_columns(row.metrics))
    figures = numeric_figures(dict.fromkeys((*COLUMNS, *metrics)))
    return [group.columns(figures) for group in groups]


def left_out(groups: Sequence[Group]) -> list[str]:
    """A sentence for each reason why the times of runs are in no mean, with the runs."""
    names: dict[str, list[str]] = {}
    for group in groups:
        for row in group.completed:
            if reasons := row.figures.get("not_comparable"):
                names.setdefault("; ".join(reasons), []).append(row.name)
    return [f"times are in no mean: {reason}: {list_names(runs)}" for reason, runs in names.items()]


def _statistics(name: str, values: Sequence[float]) -> Mapping[str, float | int | None]:
    """The columns of a figure; the sample's standard deviation needs two values, the interval three."""
    mean = statistics.fmean(values) if values else None
    deviation = statistics.stdev(values) if len(values) > 1 else None
    low, high = interval(values) or (None, None)
    return {
        name: mean,
        f"{name}.std": deviation,
        f"{name}.count": len(values),
        f"{name}.low": low,
        f"{name}.high": high,
    }


def _seed(row: Result) -> Any:
    return row.config.get(SEED)


def _varied_name(field: str) -> str:
    """The column of a field that varies; a key of the user's own script may have any name."""
    if field in _OWN:
        return f"config.{field}"
    return column_name(field)
