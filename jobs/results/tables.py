"""How plans and results look to a person and to a program: rich tables, csv and json."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from disttrain.records.record_files import failure_name
from jobs.planning.cluster_profile import DEBUG
from jobs.planning.plan import Plan, count_runs
from jobs.results.collect import COLUMNS, Result, read_run
from jobs.slurm.states import State
from jobs.storage.ledger import read_ledger
from jobs.storage.sweep_folder import SweepFolder

# No vertical lines, two blanks between columns: fits 80 columns, and pastes well.
_LOOK: dict[str, Any] = {"box": SIMPLE_HEAD, "padding": (0, 1, 0, 0), "pad_edge": False}
_STATE_STYLE = {State.COMPLETED.value: "green", State.RUNNING.value: "cyan", State.PENDING.value: "dim"}


def plan_table(plan: Plan) -> Table:
    """Every run under its allocation, with what the allocation asks for."""
    title = f"{plan.sweep_name} on {plan.cluster_name}: {count_runs(len(plan.runs))}"
    if plan.cluster_name == DEBUG:
        title += ", each as one rank in this process"
    table = Table(title=title, title_justify="left", **_LOOK)
    table.add_column("allocation, runs", no_wrap=True)
    table.add_column("asks for, differs in")
    table.add_column("GPU-h at limit", justify="right", no_wrap=True)
    for group in plan.groups:
        shape, limit = group.allocation, group.gpu_hours_limit
        asks = f"nodes {shape.nodes}, tasks {shape.world_size}, GPUs {shape.world_size}"
        asks += "" if group.time_min is None else f", {group.time_min} min"
        table.add_row(f"{shape}: {count_runs(len(group.runs))}", asks, _cell(limit), style="bold")
        for run in group.runs:
            point = ", ".join(f"{key}={_short(value)}" for key, value in run.point.items())
            table.add_row(f"  {run.run_id}", escape(point), _cell(None if limit is None else limit / len(group.runs)))
        table.add_section()
    limits = [group.gpu_hours_limit for group in plan.groups]
    total = None if None in limits else sum(limit for limit in limits if limit is not None)
    table.add_row("total", count_runs(len(plan.runs)), _cell(total), style="bold")
    return table


def results_table(results: Sequence[Result], title: str, width: int) -> Table:
    """What a person looks for first in results; csv and json have every column.

    Args:
        results: The rows.
        title: Above them.
        width: Of the terminal; a narrow one gets fewer columns rather than cut ones.
    """
    table = Table(title=title, title_justify="left", **_LOOK)
    shown = [
        column
        for column in _COLUMNS
        if width >= column.least_width and (not column.if_known or any(map(column.text, results)))
    ]
    for column in shown:
        table.add_column(column.heading, justify="right" if column.number else "left", no_wrap=True)
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
            carried = f"{_cell(row.link_bus_gb_per_s)} GB/s ({row.backend}, bus bandwidth)"
            yield f"link of {row.allocation}: {_cell(row.link_latency_ms)} ms, {carried}"
    yield from (_cross_check(row) for row in results if row.no_sync_exposed_ms is not None)


def _cross_check(row: Result) -> str:
    """What a run's exposed exchange is by each estimate, of the same passes."""
    told = [] if row.no_sync_difference is None else [f"{row.no_sync_difference * 100:+z.0f} %"]
    told.append("a check" if row.no_sync_is_check else "a bound")
    estimates = [
        f"exposed {_cell(row.check_exposed_ms)} ms by marks",
        f"{_cell(row.no_sync_exposed_ms)} ms by no_sync ({', '.join(told)})",
    ]
    if row.ddp_exposed_ms is not None:
        estimates.append(f"{_cell(row.ddp_exposed_ms)} ms by DDP")
    return f"{row.run_id}: {', '.join(estimates)}"


@dataclass(frozen=True)
class _Column:
    heading: str
    text: Callable[[Result], str]
    number: bool = True
    least_width: int = 168  # of the terminal
    if_known: bool = False  # left out where no row has it


def _number(heading: str, name: str, **how: Any) -> _Column:
    return _Column(heading, lambda row: _cell(getattr(row, name)), **how)


def _batch(row: Result) -> str:
    if row.global_batch:
        return f"{row.global_batch} in all"
    return _cell(row.per_gpu_batch)


def _speed(row: Result) -> str:
    # A number from shared GPUs, or from nodes that were one host, is no measurement of the shape: marked.
    return _cell(row.samples_per_s) + ("*" if row.comparable is False and row.samples_per_s is not None else "")


_EXCHANGE: dict[str, Any] = {"least_width": 188, "if_known": True}
_COLUMNS = (
    _Column("run_id", lambda row: row.run_id, number=False, least_width=0),
    _Column("model", lambda row: row.model, number=False, least_width=0),
    _Column("batch", _batch, least_width=0),
    _Column("lr", lambda row: "" if row.lr is None else f"{row.lr:g}", least_width=0),
    _Column("state", lambda row: row.state, number=False, least_width=0),
    _number("wait s", "queue_wait_s"),
    _number("elapsed s", "elapsed_s"),
    _number("GPU-h", "gpu_hours", least_width=0),
    _number("train s", "train_s"),
    _Column("samples/s", _speed, least_width=0),
    _number("per GPU", "samples_per_s_per_gpu"),
    _number("fwd ms", "forward_ms"),
    _number("bwd ms", "backward_ms"),
    _number("opt ms", "optimizer_ms"),
    _number("exch ms", "exchange_ms", **_EXCHANGE),
    _Column("of link", lambda row: "" if row.link_share is None else f"{row.link_share:.0%}", **_EXCHANGE),
    _number("train loss", "train_loss"),
    _number("eval loss", "eval_loss"),
    _number("accuracy", "eval_accuracy", least_width=0),
)


def failure_lines(results: Sequence[Result], folder: SweepFolder) -> list[str]:
    """For each run that ended badly, why, and where to read on."""
    lines = []
    jobs = read_ledger(folder.path).jobs
    for row in results:
        if row.reason:
            lines.append(f"{row.run_id}  {row.state}: {row.reason}")
            first = read_run(folder.run(row.run_id)).failures[:1]
            lines += [f"    traceback in {folder.run(row.run_id) / failure_name(failure.rank)}" for failure in first]
            job_id = jobs[row.run_id][-1].job_id if row.run_id in jobs else ""
            # The local executor has a folder of logs for each job, Slurm one for all.
            rank = first[0].rank if first else 0
            logs = [*folder.logs.glob(f"{job_id}_{rank}_log.err"), *folder.logs.glob(f"{job_id}/*_{rank}_log.err")]
            lines += [f"    log in {path}" for path in sorted(logs)[:1]]
    return lines


def to_csv(results: Sequence[Result]) -> str:
    """Every column, a header, and an empty cell for None."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(dataclasses.asdict(row) for row in results)
    return buffer.getvalue()


def to_json(results: Sequence[Result], sweep: str, cluster: str) -> str:
    """Every column, under `runs`; null for a loss that is not a number, for which JSON has no word."""
    runs = [{name: _finite(value) for name, value in dataclasses.asdict(row).items()} for row in results]
    return json.dumps({"sweep": sweep, "cluster": cluster, "runs": runs}, indent=2, allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _short(value: object) -> str:
    return "{...}" if isinstance(value, dict) else f"{value:g}" if isinstance(value, float) else str(value)


def _cell(value: float | int | None) -> str:
    if value is None:
        return ""
    if isinstance(value, int):
        return str(value)
    return f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"
