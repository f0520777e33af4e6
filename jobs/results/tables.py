"""Plans and results as rich tables, CSV and JSON."""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.markup import escape
from rich.table import Table

from disttrain.records.json_values import to_json as to_json_text
from disttrain.records.record_files import failure_name
from jobs.planning.labels import Variation, value_text
from jobs.planning.plan import Plan, count_runs, run_json
from jobs.results.comparability import ONE_HOST, SHARED_GPU
from jobs.results.result import COLUMNS, Result, column_name
from jobs.results.run_records import read_run
from jobs.slurm.states import State
from jobs.storage.ledger import read_ledger
from jobs.storage.run_lookup import list_names
from jobs.storage.sweep_folder import SweepFolder

# Without vertical lines and with two blanks between columns, a table fits 80 columns and is easy to paste.
LOOK: dict[str, Any] = {"box": SIMPLE_HEAD, "padding": (0, 1, 0, 0), "pad_edge": False}
_GAP = 2
_PIPE_WIDTH = 100
_ONE_AXIS_LABEL = 16  # the usual width of a label of one field, in characters
_STATE_STYLE = {State.COMPLETED: "green", State.RUNNING: "cyan", State.PENDING: "dim"}


def plan_table(plan: Plan) -> Table:
    """Every run below its allocation, with the resources that the allocation requests."""
    title = f"{plan.sweep_name} on {plan.cluster.name}: {count_runs(len(plan.runs))}"
    if plan.cluster.kind == "debug":
        title += ", each as one rank in this process"
    table = Table(title=title, title_justify="left", **LOOK)
    table.add_column("allocation, runs", no_wrap=True)
    table.add_column("request; values of the run")
    table.add_column("GPU-h at limit", justify="right", no_wrap=True)
    variation = Variation([run_json(run) for run in plan.runs])
    for group in plan.groups:
        allocation = group.allocation
        request = f"nodes {allocation.nodes}, tasks {allocation.world_size}"
        if group.requests_gpus:
            request += f", GPUs {allocation.world_size}"
        else:
            request += ", GPUs not requested"
        if group.time_min is not None:
            request += f", limit {group.time_min} min"
        name = f"{allocation}: {count_runs(len(group.runs))}"
        table.add_row(name, request, _text(group.gpu_hours_limit), style="bold")
        run_limit = None
        if group.gpu_hours_limit is not None:
            run_limit = group.gpu_hours_limit / len(group.runs)
        for run in map(run_json, group.runs):
            table.add_row(f"  {run['run_id']}", escape(variation.description(run)), _text(run_limit))
        table.add_section()
    limits = [group.gpu_hours_limit for group in plan.groups if group.gpu_hours_limit is not None]
    total = None
    if len(limits) == len(plan.groups):
        total = sum(limits)
    table.add_row("total", count_runs(len(plan.runs)), _text(total), style="bold")
    return table


@dataclass(frozen=True)
class _Column:
    """A column of the printed table; of columns with a rank above 0, a narrow table leaves out the highest first."""

    name: str
    rank: int
    values: tuple[Any, ...]
    cells: tuple[str, ...]

    @property
    def width(self) -> int:
        return max(map(cell_len, (self.name, *self.cells)))

    @property
    def is_equal(self) -> bool:
        return all(value == self.values[0] for value in self.values)

    @property
    def is_number(self) -> bool:
        return all(isinstance(value, int | float | None) for value in self.values)


def results_report(results: Sequence[Result], title: str, width: int | None) -> Iterator[Table | str]:
    """The results for a person: the counts of states, the table, remarks, and the dropped runs apart.

    CSV and JSON have every column.

    Args:
        results: The rows.
        title: The name of the sweep and of its cluster.
        width: The width of the terminal in characters; None for a log or a pipe, which has none.
    """
    present = [row for row in results if not row.dropped]
    dropped = [row for row in results if row.dropped]
    yield f"{title}: {count_runs(len(present))}{state_counts(present)}"
    if present:
        yield from _table(present, width)
    if dropped:
        yield f"dropped: {count_runs(len(dropped))} no longer in the sweep file; sweep forget removes them"
        yield from _table(dropped, width)
    yield from _remarks(results)


def state_counts(results: Sequence[Result]) -> str:
    """The number of runs in each state that occurs, in the order of `State`: ``, 3 COMPLETED, 1 FAILED``."""
    counts = Counter(row.state for row in results)
    return "".join(f", {counts[state]} {state.value}" for state in State if counts[state])


def _table(results: Sequence[Result], width: int | None) -> Iterator[Table | str]:
    """The table of some rows, after a line with the values that are equal in all of them."""
    columns = [column for column in _columns(results) if any(column.cells)]
    if len(results) > 1:
        equal = [column for column in columns if column.is_equal and column.name not in ("label", "run_id")]
        columns = [column for column in columns if column not in equal]
        if equal:
            yield "the same in all rows: " + ", ".join(f"{column.name} {column.cells[0]}" for column in equal)
    table = Table(**LOOK)
    if width is None:
        # Every field that varies after the first makes the table wider: as a column and in the label.
        varied = [column for column in columns if column.name in map(column_name, results[0].varied)]
        label = next(column for column in columns if column.name == "label")
        width = _PIPE_WIDTH + sum(column.width + _GAP for column in varied[1:])
        if len(varied) > 1:
            width += max(0, label.width - _ONE_AXIS_LABEL)
    shown = _fitting(columns, width)
    for column in shown:
        justify: Literal["left", "right"] = "left"
        if column.is_number:
            justify = "right"
        table.add_column(column.name, justify=justify, no_wrap=True)
    for number, row in enumerate(results):
        cells = (escape(column.cells[number]) for column in shown)
        table.add_row(*cells, style=_STATE_STYLE.get(row.state, "red"))
    yield table


def _columns(results: Sequence[Result]) -> Iterator[_Column]:
    """The columns that the table may have: label, run id, the fields that vary, and every figure with an `InTable`."""
    figures = {figure.name: figure.table_rank for figure in COLUMNS.values() if figure.table_rank is not None}
    if not any((row.scheduled.attempts or 0) > 1 for row in results):
        del figures["attempts"]
    rows = [row.columns() for row in results]
    for name in ("label", "run_id"):
        values = tuple(row[name] for row in rows)
        yield _Column(name, figures.pop(name), values, values)
    for field in results[0].varied:
        texts = tuple(row.varied_texts[field] for row in results)
        yield _Column(column_name(field), 0, tuple(row.varied[field] for row in results), texts)
    for name, rank in figures.items():
        values = tuple(row[name] for row in rows)
        yield _Column(name, rank, values, tuple(_figure_text(name, row) for row in rows))


def _fitting(columns: Sequence[_Column], width: int) -> list[_Column]:
    """The columns that fit into the width, at least those of rank 0; of equal ranks, the last is left out first."""
    shown = list(columns)
    while sum(column.width + _GAP for column in shown) > width:
        last = max(reversed(shown), key=lambda column: column.rank)
        if last.rank == 0:
            break
        shown.remove(last)
    return shown


def _figure_text(name: str, row: Mapping[str, Any]) -> str:
    text = _text(row[name])
    if name == "samples_per_s" and text and row["comparable"] is False:
        # Speeds from shared GPUs, or from nodes that were one host, are not measurements of the allocation.
        return f"{text}*"
    return text


def _remarks(results: Sequence[Result]) -> Iterator[str]:
    if any(row.figures.get("comparable") is False for row in results):
        yield "* not comparable: ranks shared a GPU, or all nodes were this one host"
    for reason, names in _differing_rows(results).items():
        yield f"not comparable with the others: {reason}: {list_names(names)}"
    for row in results:
        if row.figures.get("link_bus_gb_per_s") is not None:
            bandwidth = f"{_text(row.figures['link_bus_gb_per_s'])} GB/s ({row.figures['backend']}, bus bandwidth)"
            yield f"link of {row.requested.allocation}: {_text(row.figures['link_latency_ms'])} ms, {bandwidth}"
    yield from (_cross_check(row) for row in results if row.figures.get("no_sync_exposed_ms") is not None)


def _differing_rows(results: Sequence[Result]) -> dict[str, list[str]]:
    """The names of the rows with each reason why they may not be compared, other than those that the `*` marks."""
    names: dict[str, list[str]] = {}
    for row in results:
        for reason in row.figures.get("not_comparable") or ():
            if SHARED_GPU not in reason and ONE_HOST not in reason:
                names.setdefault(reason, []).append(row.name)
    return names


def _cross_check(row: Result) -> str:
    """Each estimate of a run's exposed communication, all from the same passes."""
    figures = row.figures
    kind = "a bound"
    if figures["no_sync_is_check"]:
        kind = "a check"
    if figures["no_sync_difference"] is not None:
        kind = f"{figures['no_sync_difference'] * 100:+z.0f} %, {kind}"
    estimates = [
        f"exposed {_text(figures['check_exposed_ms'])} ms by marks",
        f"{_text(figures['no_sync_exposed_ms'])} ms by no_sync ({kind})",
    ]
    if figures["ddp_exposed_ms"] is not None:
        estimates.append(f"{_text(figures['ddp_exposed_ms'])} ms by DDP")
    return f"{row.name}: {', '.join(estimates)}"


def failure_lines(results: Sequence[Result], folder: SweepFolder) -> list[str]:
    """For each failed run, the reason and the paths of the traceback and the log."""
    lines = []
    jobs = read_ledger(folder.path).jobs
    for row in results:
        if row.scheduled.reason and not row.dropped:
            lines.append(f"{row.name}  {row.state}: {row.scheduled.reason}")
            rank = 0
            for failure in read_run(folder.run(row.run_id)).failures[:1]:
                rank = failure.rank
                lines.append(f"    traceback in {folder.run(row.run_id) / failure_name(rank)}")
            logs: list[Path] = []
            if row.run_id in jobs:
                job_id = jobs[row.run_id][-1].job_id
                # The local executor has one log folder for each job, Slurm has one for all jobs.
                logs = [*folder.logs.glob(f"{job_id}_{rank}_log.err"), *folder.logs.glob(f"{job_id}/*_{rank}_log.err")]
            lines += [f"    log in {path}" for path in sorted(logs)[:1]]
    return lines


def to_csv(results: Sequence[Result], *, all_columns: bool = False) -> str:
    """Every column with a header; None is an empty cell, names are joined by commas.

    Args:
        results: The rows.
        all_columns: Whether the fields of the config that are equal in all runs are columns too, after the others.
    """
    rows = [row.columns() for row in results]
    if all_columns:
        rows = [
            columns
            | {column_name(name): value for name, value in row.config.items() if column_name(name) not in columns}
            for row, columns in zip(results, rows, strict=True)
        ]
    names = list(dict.fromkeys(name for columns in rows for name in columns)) or ["run_id", *COLUMNS]
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(dict.fromkeys(names)), lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: _csv_value(value) for name, value in columns.items()} for columns in rows)
    return buffer.getvalue()


def _csv_value(value: Any) -> Any:
    """A value as a cell: names joined by commas; sentences and nested values as JSON."""
    if isinstance(value, tuple) and all(isinstance(item, str) and not re.search(r"[\s,]", item) for item in value):
        return ",".join(value) or "none"
    if isinstance(value, tuple | Mapping):
        return to_json_text(value)
    return value


def to_json(results: Sequence[Result], sweep: str, cluster: str) -> str:
    """Every column, and the complete config, under `runs`; null for a number that is not finite."""
    runs = [{**row.columns(), "config": row.config} for row in results]
    return to_json_text({"sweep": sweep, "cluster": cluster, "runs": runs}, indent=2) + "\n"


def _text(value: Any) -> str:
    """A value as a cell of a table: three digits are enough to compare runs."""
    if value is None:
        return ""
    if isinstance(value, tuple):
        return ",".join(map(str, value)) or "none"
    if not isinstance(value, float):
        return value_text(value)
    if abs(value) < 100:
        return f"{value:.3g}"
    return f"{value:.0f}"
