"""Plans and results as printed tables, CSV and JSON."""

from __future__ import annotations

import csv
import io
import re
import shlex
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from disttrain.config.command.arguments import arguments
from disttrain.config.command.command_config import CommandConfig
from disttrain.errors import shorten
from disttrain.records.json_values import to_json as to_json_text
from disttrain.records.record_files import failure_name
from jobs.planning.expand import RunSpec
from jobs.planning.labels import Variation, value_text
from jobs.planning.plan import JobGroup, Plan, count_runs, run_json
from jobs.results.comparability import ONE_HOST, SHARED_GPU
from jobs.results.metric_columns import PREFIX, metric_column, shown_metrics
from jobs.results.result import COLUMNS, Result, column_name
from jobs.results.run_records import read_run
from jobs.results.text_table import GAP, TextColumn, TextTable
from jobs.slurm.states import State
from jobs.storage.job_logs import log_files
from jobs.storage.ledger import Job, read_ledger
from jobs.storage.run_lookup import list_names
from jobs.storage.sweep_folder import SweepFolder

_PIPE_WIDTH = 100
_MOST_COMMANDS = 3  # of which the plan shows the arguments
_METRIC_RANKS = (1, 1, 3, 3)  # of the metrics of scripts, as of `InTable`: a user looks for what the script logs
_CODE_RANK = 3  # of the hash of the code, if it differs
_LONGEST_NAME = 32  # of a column, in characters
_ONE_AXIS_LABEL = 16  # the usual width of a label of one field, in characters
_STATE_STYLE = {State.COMPLETED: "green", State.RUNNING: "cyan", State.PENDING: "dim"}


def plan_report(plan: Plan, expected: Mapping[str, float] | None = None) -> Iterator[TextTable | str]:
    """The plan for a person: every run below its allocation, with the resources that the allocation requests.

    Args:
        plan: The plan.
        expected: The expected GPU-hours by run id, of the runs for which they are known.
    """
    title = f"{plan.sweep_name} on {plan.cluster.name}: {count_runs(len(plan.runs))}"
    if plan.cluster.kind == "debug":
        title += ", each as one rank in this process"
    yield title
    rows: list[tuple[str, str, str, str]] = []
    known = {run_id: hours for run_id, hours in (expected or {}).items() if plan.cluster.kind == "slurm"}
    styles: list[str] = []
    planned = {run.run_id: run_json(run) for run in plan.runs}
    variation = Variation(list(planned.values()))
    for run, config in _first_of_each_command(plan):
        yield f"{variation.label(planned[run.run_id])} starts: {shlex.join(arguments(config))}"
        if booleans := _booleans(config):
            keys = ", ".join(booleans)
            yield f"note: {keys} has a value, true or false; without one: switches: [{keys}]"
    for group in plan.groups:
        limit = group.gpu_hours_limit
        name = f"{group.allocation}: {count_runs(len(group.runs))}"
        rows.append((name, _request(group), _text(limit), _expected_text(group.runs, known)))
        run_limit = _text(limit if limit is None else limit / len(group.runs))
        rows += [
            (f"  {run.run_id}", variation.description(planned[run.run_id]), run_limit, _expected_text([run], known))
            for run in group.runs
        ]
        rows.append(("", "", "", ""))
        styles += ["bold", *[""] * (len(group.runs) + 1)]
    limits = [group.gpu_hours_limit for group in plan.groups if group.gpu_hours_limit is not None]
    total = None
    if len(limits) == len(plan.groups):
        total = sum(limits)
    rows.append(("total", count_runs(len(plan.runs)), _text(total), _expected_text(plan.runs, known)))
    names, texts, hours, expected_texts = zip(*rows, strict=True)
    columns = [
        TextColumn("allocation, runs", names),
        TextColumn("request; values of the run", texts, wraps=True),
        TextColumn("GPU-h at limit", hours, is_right=True),
    ]
    if known:
        columns.append(TextColumn("expected", expected_texts, is_right=True))
    yield TextTable(columns, [*styles, "bold"])
    if known:
        of_runs = f"{len(known)} of {count_runs(len(plan.runs))}"
        yield f"expected: {_text(sum(known.values()))} GPU-h for {of_runs}, by earlier runs of the same config"


def _expected_text(runs: Sequence[RunSpec], known: Mapping[str, float]) -> str:
    """The expected GPU-hours of some runs; empty if those of one are not known."""
    if not all(run.run_id in known for run in runs):
        return ""
    return _text(sum(known[run.run_id] for run in runs))


def _first_of_each_command(plan: Plan) -> Iterator[tuple[RunSpec, CommandConfig]]:
    """The first run of the first commands: what the user reads to see whether the flags are those of the script."""
    seen: set[str] = set()
    for run in plan.runs:
        if isinstance(run.config, CommandConfig) and run.config.command not in seen and len(seen) < _MOST_COMMANDS:
            seen.add(run.config.command)
            yield run, run.config


def _booleans(config: CommandConfig) -> list[str]:
    """The keys that may be flags without a value in the script."""
    if not config.flags.startswith("-"):
        return []
    return [name for name, value in config.values.items() if isinstance(value, bool) and name not in config.switches]


def _request(group: JobGroup) -> str:
    """What a group asks for."""
    request = f"nodes {group.allocation.nodes}, tasks {group.tasks}"
    if group.requests_gpus:
        request += f", GPUs {group.allocation.world_size}"
    else:
        request += ", GPUs not requested"
    if group.time_min is not None:
        request += f", limit {group.time_min} min"
    return request


@dataclass(frozen=True)
class _Column:
    """A column of the printed table; of columns with a rank above 0, a narrow table leaves out the highest first."""

    name: str
    rank: int
    values: tuple[Any, ...]
    cells: tuple[str, ...]

    @cached_property
    def shown(self) -> TextColumn:
        """The column as it is printed. A metric, or a key of the user's own script, may have any name."""
        name = shorten(self.name)
        if len(name) > _LONGEST_NAME:
            name = f"{name[: _LONGEST_NAME - 3]}..."
        return TextColumn(name, self.cells, self.is_number)

    @cached_property
    def width(self) -> int:
        return self.shown.width

    @property
    def is_equal(self) -> bool:
        return all(value == self.values[0] for value in self.values)

    @property
    def is_number(self) -> bool:
        return all(isinstance(value, int | float | None) for value in self.values)


def results_report(results: Sequence[Result], title: str, width: int | None) -> Iterator[TextTable | str]:
    """Every result for a person: the counts of states, the table, remarks, and the dropped runs apart.

    CSV and JSON have every column.

    Args:
        results: The rows.
        title: The name of the sweep and of its cluster.
        width: The width of the terminal in characters; None for a log or a pipe, which has none.
    """
    present = [row for row in results if not row.dropped]
    dropped = [row for row in results if row.dropped]
    yield heading(present, title)
    if present:
        yield from _table(present, width)
    if dropped:
        yield dropped_heading(dropped)
        yield from _table(dropped, width)
    yield from _remarks(results)


def heading(present: Sequence[Result], title: str) -> str:
    """The number of runs, and of those in each state that occurs: ``s on site: 4 runs, 3 COMPLETED, 1 FAILED``."""
    counts = Counter(row.state for row in present)
    states = "".join(f", {counts[state]} {state.value}" for state in State if counts[state])
    return f"{title}: {count_runs(len(present))}{states}"


def dropped_heading(dropped: Sequence[Result]) -> str:
    """The number of dropped runs, and what removes them."""
    return f"dropped: {count_runs(len(dropped))} no longer in the sweep file; sweep forget removes them"


def _table(results: Sequence[Result], width: int | None) -> Iterator[TextTable | str]:
    """The table of some rows, after a line with the values that are equal in all of them."""
    columns = [column for column in _columns(results) if any(column.cells)]
    if len(results) > 1:
        equal = [column for column in columns if column.is_equal and column.name not in ("label", "run_id")]
        columns = [column for column in columns if column not in equal]
        if equal:
            yield "the same in all rows: " + ", ".join(f"{column.shown.name} {column.cells[0]}" for column in equal)
    if width is None:
        # Every field that varies after the first makes the table wider: as a column and in the label.
        varied = [column for column in columns if column.name in map(column_name, results[0].varied)]
        label = next(column for column in columns if column.name == "label")
        metrics = [column for column in columns if column.name.startswith(PREFIX)]
        wider = [*varied[1:], *metrics[: _METRIC_RANKS.count(1)]]
        width = _PIPE_WIDTH + sum(column.width + len(GAP) for column in wider)
        if len(varied) > 1:
            width += max(0, label.width - _ONE_AXIS_LABEL)
    shown = [column.shown for column in _fitting(columns, width)]
    yield TextTable(shown, [state_style(row.state) for row in results])


def state_style(state: State) -> str:
    """The style of a row in this state."""
    return _STATE_STYLE.get(state, "red")


def _columns(results: Sequence[Result]) -> Iterator[_Column]:
    """The columns that the table may have.

    They are label, run id, the fields that vary, every figure with an `InTable`, and some metrics of scripts.
    """
    figures = {figure.name: figure.table_rank for figure in COLUMNS.values() if figure.table_rank is not None}
    if not any((row.scheduled.attempts or 0) > 1 for row in results):
        del figures["attempts"]
    if not any(row.scheduled.gpu_hours_wasted for row in results):
        del figures["gpu_hours_wasted"]
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
    codes = tuple(row.requested.code for row in results)
    if len(set(codes)) > 1:
        yield _Column("code", _CODE_RANK, codes, tuple(code or "" for code in codes))
    shown = shown_metrics([row.metrics for row in results], len(_METRIC_RANKS))
    for metric, rank in zip(shown, _METRIC_RANKS, strict=False):
        values = tuple(row.metrics.get(metric, {}).get("last") for row in results)
        texts = tuple(_metric_text(row.metrics.get(metric, {})) for row in results)
        yield _Column(metric_column(metric), rank, values, texts)


def _fitting(columns: Sequence[_Column], width: int) -> list[_Column]:
    """The columns that fit into the width, at least those of rank 0; of equal ranks, the last is left out first."""
    shown = list(columns)
    while sum(column.width + len(GAP) for column in shown) > width:
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


def _metric_text(figures: Mapping[str, float | None]) -> str:
    """The last value of a metric; a run that diverged must not look like one that logged nothing."""
    if figures.get("count") and figures.get("last") is None:
        return "nan"
    return _text(figures.get("last"))


def _remarks(results: Sequence[Result]) -> Iterator[str]:
    if wasted := sum(row.scheduled.gpu_hours_wasted or 0 for row in results):
        yield f"gpu_hours has {_text(wasted)} h of attempts that failed, or whose steps were done again"
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


def failure_lines(results: Sequence[Result], folder: SweepFolder) -> Iterator[list[str]]:
    """The lines of each run that has a reason why it waits or failed."""
    jobs = read_ledger(folder.path).jobs
    for row in results:
        if row.scheduled.reason and not row.dropped:
            yield run_lines(row, folder, jobs.get(row.run_id, ()))


def run_lines(row: Result, folder: SweepFolder, jobs: Sequence[Job]) -> list[str]:
    """A run with its state and, if it has a reason, with that and the paths of its traceback and its log.

    Args:
        row: The run.
        folder: The folder of the sweep.
        jobs: The jobs of the run, the latest last.
    """
    if not row.scheduled.reason:
        return [f"{row.name}  {row.state}"]
    lines = [f"{row.name}  {row.state}: {row.scheduled.reason}"]
    rank = 0
    for failure in read_run(folder.run(row.run_id)).failures[:1]:
        rank = failure.rank
        lines.append(f"    traceback in {folder.run(row.run_id) / failure_name(rank)}")
    logs = [path for job in jobs[-1:] for path in log_files(folder.logs, job.job_id, rank) if path.suffix == ".err"]
    return [*lines, *(f"    log in {path}" for path in logs[:1])]


def to_csv(results: Sequence[Result], *, all_columns: bool = False) -> str:
    """Every column with a header; None is an empty cell, names are joined by commas.

    Args:
        results: The rows.
        all_columns: Whether the fields of the config that are equal in all runs are columns too, after the others.
    """
    rows = [row.columns() for row in results]
    names = _names(rows) or ["run_id", *COLUMNS]
    if all_columns:
        rows = [
            {column_name(name): value for name, value in row.config.items()} | columns
            for row, columns in zip(results, rows, strict=True)
        ]
        names = list(dict.fromkeys((*names, *_names(rows))))
    return csv_text(names, rows)


def csv_text(names: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as CSV with a header.

    Args:
        names: The columns.
        rows: The values of each row by column; a missing value is an empty cell.
    """
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(names)
    writer.writerows([_csv_value(columns.get(name)) for name in names] for columns in rows)
    return buffer.getvalue()


def _names(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The columns of all rows: not every script logs the same metrics."""
    return list(dict.fromkeys(name for columns in rows for name in columns))


def _csv_value(value: Any) -> Any:
    """A value as a cell: names joined by commas; sentences and nested values as JSON."""
    if value is None or isinstance(value, str | int | float):
        return value
    if isinstance(value, tuple) and all(isinstance(item, str) and not re.search(r"[\s,]", item) for item in value):
        return ",".join(value) or "none"
    if isinstance(value, tuple | Mapping):
        return to_json_text(value)
    return value


def to_json(results: Sequence[Result], sweep: str, cluster: str) -> str:
    """Every column, and the complete config, under `runs`; null for a number that is not finite."""
    rows = [row.columns() for row in results]
    absent = dict.fromkeys(_names(rows))
    runs = [{**absent, **columns, "config": row.config} for row, columns in zip(results, rows, strict=True)]
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
