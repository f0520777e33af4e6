"""`sweep scaling`: how the runs of a sweep scale over GPUs and nodes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from jobs.cli.options import Json, OfCluster, Root, SubmittedSweep
from jobs.cli.results_output import read_status
from jobs.cli.shared import print_json, sweeps_root, table_console

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jobs.results.result import Result

_COLUMNS = (
    "samples_per_s", "weak_efficiency", "weak_baseline", "strong_efficiency", "strong_baseline", "crossing_ratio",
    "crossing_baseline",
)  # fmt: skip


def scaling(sweep: SubmittedSweep = None, cluster: OfCluster = None, root: Root = None, json_: Json = False) -> None:
    """Show how runs scale: weak, strong, and the price of crossing nodes, each with its baseline.

    A ratio is missing where the sweep has no comparable baseline; the reason follows the table.
    """
    from jobs.storage.sweep_folder import find_folder

    folder = find_folder(sweeps_root(root), sweep, cluster)
    rows = [row for row in read_status(folder).results if row.figures.get("samples_per_s") is not None]
    if json_:
        print_json([_shown(row) for row in rows])
        return
    if not rows:
        print("no run has samples_per_s yet")
        return
    _print_table(rows)


def _shown(row: Result) -> dict[str, Any]:
    columns = row.columns()
    names = ("run_id", "label", "allocation", *_COLUMNS, "scaling_note")
    return {name: columns[name] for name in names}


def _print_table(rows: Sequence[Result]) -> None:
    from jobs.results.text_table import TextColumn, TextTable
    from jobs.storage.run_lookup import list_names

    shown = [_shown(row) for row in rows]
    columns = [TextColumn("label", [row.label for row in rows]), TextColumn("run_id", [row.run_id for row in rows])]
    for name in _COLUMNS:
        cells = [_cell(values[name]) for values in shown]
        if any(cells):
            columns.append(TextColumn(name, cells, is_right=not name.endswith("baseline")))
    table_console().print(TextTable(columns, [""] * len(rows)), markup=False, highlight=False, crop=False)
    runs_of: dict[str, list[str]] = {}
    for row, values in zip(rows, shown, strict=True):
        if values["scaling_note"]:
            runs_of.setdefault(values["scaling_note"], []).append(row.label)
    for note, labels in runs_of.items():
        print(f"{list_names(labels)}: {note}")


def _cell(value: float | str | None) -> str:
    from jobs.analysis.group_output import number_text

    if value is None or isinstance(value, str):
        return value or ""
    return number_text(value)
