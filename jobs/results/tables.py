"""Plans and results as rich tables, CSV and JSON."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from disttrain.records.record_files import failure_name
from jobs.planning.cluster_profile import DEBUG
from jobs.planning.plan import Plan, count_runs
from jobs.results.collect import COLUMNS, Result
from jobs.results.run_records import read_run
from jobs.slurm.states import State
from jobs.storage.ledger import read_ledger
from jobs.storage.sweep_folder import SweepFolder

# Without vertical lines and with two blanks between columns, a table fits 80 columns and is easy to paste.
_LOOK: dict[str, Any] = {"box": SIMPLE_HEAD, "padding": (0, 1, 0, 0), "pad_edge": False}
_STATE_STYLE = {State.COMPLETED.value: "green", State.RUNNING.value: "cyan", State.PENDING.value: "dim"}


def plan_table(plan: Plan) -> Table:
    """Every run below its allocation, with the resources that the allocation requests."""
    title = f"{plan.sweep_name} on {plan.cluster_name}: {count_runs(len(plan.runs))}"
    if plan.cluster_name == DEBUG:
        title += ", each as one rank in this process"
    table = Table(title=title, title_justify="left", **_LOOK)
    table.add_column("allocation, runs", no_wrap=True)
    table.add_column("request; values of the run")
    table.add_column("GPU-h at limit", justify="right", no_wrap=True)
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
        table.add_row(name, request, _cell(group.gpu_hours_limit), style="bold")
        run_limit = None
        if group.gpu_hours_limit is not None:
            run_limit = group.gpu_hours_limit / len(group.runs)
        for run in group.runs:
            point = ", ".join(f"{key}={_short(value)}" for key, value in run.point.items())
            table.add_row(f"  {run.run_id}", escape(point), _cell(run_limit))
        table.add_section()
    limits = [group.gpu_hours_limit for group in plan.groups if group.gpu_hours_limit is not None]
    total = None
    if len(limits) == len(plan.groups):
        total = sum(limits)
    table.add_row("total", count_runs(len(plan.runs)), _cell(total), style="bold")
    return table


def results_table(results: Sequence[Result], title: str, width: int) -> Table:
    """The most important columns of the results; CSV and JSON have every column.

    Args:
        results: The rows.
        title: The title above the table.
        width: The width of the terminal in characters; a narrow one gets fewer columns, but no truncated ones.
    """
    table = Table(title=title, title_justify="left", **_LOOK)
    shown = [
        column
        for column in _COLUMNS
        if width >= column.least_width and (not column.if_known or any(map(column.text, results)))
    ]
    for column in shown:
        table.add_column(column.heading, justify=column.justify, no_wrap=True)
    for row in results:
        table.add_row(*(column.text(row) for column in shown), style=_STATE_STYLE.get(row.state, "red"))
    table.caption = "\n".join(_remarks(results)) or None
    table.caption_justify = "left"
    return table


def _remarks(results: Sequence[Result]) -> Iterator[str]:
    if any(row.comparable is False for row in results):
        yield "* not comparable: ranks shared a GPU, or all nodes were this one host"
    for row in results:
        if row.link_bus_gb_per_s is not None:
            bandwidth = f"{_cell(row.link_bus_gb_per_s)} GB/s ({row.backend}, bus bandwidth)"
            yield f"link of {row.allocation}: {_cell(row.link_latency_ms)} ms, {bandwidth}"
    yield from (_cross_check(row) for row in results if row.no_sync_exposed_ms is not None)


def _cross_check(row: Result) -> str:
    """Each estimate of a run's exposed communication, all from the same passes."""
    kind = "a bound"
    if row.no_sync_is_check:
        kind = "a check"
    if row.no_sync_difference is not None:
        kind = f"{row.no_sync_difference * 100:+z.0f} %, {kind}"
    estimates = [
        f"exposed {_cell(row.check_exposed_ms)} ms by marks",
        f"{_cell(row.no_sync_exposed_ms)} ms by no_sync ({kind})",
    ]
    if row.ddp_exposed_ms is not None:
        estimates.append(f"{_cell(row.ddp_exposed_ms)} ms by DDP")
    return f"{row.run_id}: {', '.join(estimates)}"


@dataclass(frozen=True)
class _Column:
    heading: str
    text: Callable[[Result], str]
    justify: Literal["left", "right"] = "right"
    least_width: int = 168  # the width of the terminal from which the column is shown
    if_known: bool = False  # whether the column is left out if no row has a value


def _number(heading: str, name: str, **options: Any) -> _Column:
    return _Column(heading, lambda row: _cell(getattr(row, name)), **options)


def _batch(row: Result) -> str:
    if row.global_batch:
        return f"{row.global_batch} global"
    return _cell(row.per_gpu_batch)


def _speed(row: Result) -> str:
    speed = _cell(row.samples_per_s)
    if speed and row.comparable is False:
        # Speeds from shared GPUs, or from nodes that were one host, are not measurements of the allocation.
        return f"{speed}*"
    return speed


_ALL_REDUCE: dict[str, Any] = {"least_width": 188, "if_known": True}
_COLUMNS = (
    _Column("run_id", lambda row: row.run_id, justify="left", least_width=0),
    _Column("model", lambda row: row.model, justify="left", least_width=0),
    _Column("batch", _batch, least_width=0),
    _Column("lr", lambda row: _formatted(row.lr, "g"), least_width=0),
    _Column("state", lambda row: row.state, justify="left", least_width=0),
    _number("wait s", "queue_wait_s"),
    _number("elapsed s", "elapsed_s"),
    _number("GPU-h", "gpu_hours", least_width=0),
    _number("train s", "train_s"),
    _Column("samples/s", _speed, least_width=0),
    _number("per GPU", "samples_per_s_per_gpu"),
    _number("fwd ms", "forward_ms"),
    _number("bwd ms", "backward_ms"),
    _number("opt ms", "optimizer_ms"),
    _number("exch ms", "exchange_ms", **_ALL_REDUCE),
    _Column("of link", lambda row: _formatted(row.link_share, ".0%"), **_ALL_REDUCE),
    _number("train loss", "train_loss"),
    _number("eval loss", "eval_loss"),
    _number("accuracy", "eval_accuracy", least_width=0),
)


def failure_lines(results: Sequence[Result], folder: SweepFolder) -> list[str]:
    """For each failed run, the reason and the paths of the traceback and the log."""
    lines = []
    jobs = read_ledger(folder.path).jobs
    for row in results:
        if row.reason:
            lines.append(f"{row.run_id}  {row.state}: {row.reason}")
            rank = 0
            for failure in read_run(folder.run(row.run_id)).failures[:1]:
                rank = failure.rank
                lines.append(f"    traceback in {folder.run(row.run_id) / failure_name(rank)}")
            job_id = ""
            if row.run_id in jobs:
                job_id = jobs[row.run_id][-1].job_id
            # The local executor has one log folder for each job, Slurm has one for all jobs.
            logs = [*folder.logs.glob(f"{job_id}_{rank}_log.err"), *folder.logs.glob(f"{job_id}/*_{rank}_log.err")]
            lines += [f"    log in {path}" for path in sorted(logs)[:1]]
    return lines


def to_csv(results: Sequence[Result]) -> str:
    """All columns with a header; None is an empty cell."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(dataclasses.asdict(row) for row in results)
    return buffer.getvalue()


def to_json(results: Sequence[Result], sweep: str, cluster: str) -> str:
    """All columns, under `runs`; null for a loss that is not finite, because JSON has no value for it."""
    runs = [{name: _finite(value) for name, value in dataclasses.asdict(row).items()} for row in results]
    return json.dumps({"sweep": sweep, "cluster": cluster, "runs": runs}, indent=2, allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _short(value: object) -> str:
    if isinstance(value, dict):
        return "{...}"
    if isinstance(value, float):
        return f"{value:g}"
    return str(value)


def _formatted(value: float | None, format_spec: str) -> str:
    if value is None:
        return ""
    return format(value, format_spec)


def _cell(value: float | int | None) -> str:
    if value is None:
        return ""
    if isinstance(value, int):
        return str(value)
    if abs(value) < 100:
        return f"{value:.3g}"
    return f"{value:.0f}"
