"""Groups of seeds as a printed table, CSV and JSON."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from disttrain.records.json_values import to_json
from jobs.analysis.columns import numeric_figures
from jobs.planning.labels import value_text
from jobs.planning.plan import count_runs
from jobs.results.metric_columns import PREFIX
from jobs.results.result import COLUMNS
from jobs.results.tables import csv_text
from jobs.results.text_table import TextColumn, TextTable

_MOST_FIGURES = 5  # in the printed table
_LAST_RANK = 99  # of a figure that is not in the printed table of runs


def group_report(rows: Sequence[Mapping[str, Any]], title: str) -> Iterator[TextTable | str]:
    """The groups for a person: their runs, and the means with their intervals.

    Args:
        rows: The rows of the groups, as `seeds.group_rows` made them.
        title: The name of the sweep and of its cluster.
    """
    yield f"{title}: {count_runs(sum(row['runs'] for row in rows))} in {len(rows)} groups of equal configs"
    columns = [TextColumn(name, [value_text(row[name]) for row in rows], name != "label") for name in ("label", "runs")]
    columns += [
        TextColumn(name, [value_text(row[name]) for row in rows], True)
        for name in ("completed", "failed")
        if any(row[name] != rows[0]["runs"] * (name == "completed") for row in rows)
    ]
    columns += [TextColumn(name, [_mean_text(row, name) for row in rows], True) for name in _shown(rows)]
    yield TextTable(columns, [""] * len(rows))
    yield "a mean [its 95 % interval]; no interval below three runs"


def _shown(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The figures of the printed table: the most important ones that a group has."""
    known = [name for name in numeric_figures(rows[0]) if f"{name}.count" in rows[0] and _is_known(rows, name)]
    ranks = {figure.name: figure.table_rank for figure in COLUMNS.values() if figure.table_rank is not None}
    of_scripts = [name for name in known if name.startswith(PREFIX) and not name.endswith((".best", ".mean"))]
    ranks |= dict.fromkeys(of_scripts, 1)
    chosen = sorted((name for name in known if name in ranks), key=lambda name: ranks.get(name, _LAST_RANK))
    return [name for name in known if name in chosen[:_MOST_FIGURES]]


def _is_known(rows: Sequence[Mapping[str, Any]], name: str) -> bool:
    return any(row.get(name) is not None for row in rows)


def _mean_text(row: Mapping[str, Any], name: str) -> str:
    text = number_text(row.get(name))
    if row.get(f"{name}.low") is None:
        return text
    return f"{text} [{number_text(row[f'{name}.low'])}, {number_text(row[f'{name}.high'])}]"


def number_text(value: float | None) -> str:
    """A number with four digits, so that runs of different seeds differ.

    Example:
        >>> number_text(0.123456), number_text(12345.6), number_text(None)
        ('0.1235', '12346', '')
    """
    if value is None:
        return ""
    if abs(value) >= 1000:
        return f"{value:.0f}"
    return f"{value:.4g}"


def groups_to_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """Every column of the groups as CSV."""
    return csv_text(list(dict.fromkeys(name for row in rows for name in row)), rows)


def groups_to_json(rows: Sequence[Mapping[str, Any]], sweep: str, cluster: str) -> str:
    """Every column of the groups, under `groups`."""
    return to_json({"sweep": sweep, "cluster": cluster, "groups": rows}, indent=2) + "\n"
