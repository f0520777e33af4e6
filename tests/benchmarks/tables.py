"""Results as tables, and the tables as Markdown or for a terminal."""

from __future__ import annotations

import datetime
import re
import shlex
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import rich.box
from rich.table import Table

from tests.benchmarks.cells import Cell
from tests.benchmarks.contenders import OURS, PEER_NAMES, REFERENCE, Contender
from tests.benchmarks.stats import Ratio, Runs, best_peer, paired_ratio, speeds
from tests.benchmarks.work import Result

NONE = "-"


@dataclass(frozen=True)
class Grid:
    """A table of texts."""

    title: str
    note: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class CellResult:
    """What was measured in one cell."""

    cell: Cell
    runs: Runs
    tolerances: tuple[float, float]  # of the evaluation's loss and accuracy
    complaints: tuple[str, ...] = ()  # where contenders did not learn the same
    less: tuple[str, ...] = ()  # peers that learnt less than the reference
    mfu: Mapping[str, float] | None = None  # on a GPU: share of its peak, by contender


def throughput(results: Sequence[CellResult], contenders: Sequence[Contender], *, first_step: bool = True) -> Grid:
    """Every contender against HF Trainer's defaults, and ours against the best peer."""
    others = [each for each in contenders if each.name != REFERENCE and each.name in (OURS, *PEER_NAMES)]
    header = ["work", "runs", "HF defaults, examples/s", *(each.label for each in others), "ours / best peer"]
    rows = []
    for result in results:
        rows.append((result.cell.text, *_throughput_row(result, [each.name for each in others], first_step)))
    if first_step:
        title, note = (
            "Throughput",
            "Times as fast as HF Trainer's defaults, over whole epochs, the first step included. What is made once"
            " before it is not: everyone's token ids, ours also the decoded images.",
        )
    else:
        title, note = "Throughput without the first step", "The same runs; a GPU's compilation is in the first step."
    if any(result.less for result in results):
        note += (
            " A peer with a * learnt less than HF's defaults, or ours, in the same steps, by more than the tolerance."
        )
    note += " Median over the repetitions [95 % interval: Student's t of the log ratios, paired by repetition]."
    return Grid(title, note, tuple(header), tuple(rows))


def _throughput_row(result: CellResult, others: Sequence[str], first_step: bool) -> list[str]:
    runs = result.runs
    count = max((len(each) for each in runs.values()), default=0)
    if result.complaints:
        return [str(count), "not the same learning", *([NONE] * (len(others) + 1))]
    reference = speeds(runs[REFERENCE], first_step=first_step) if REFERENCE in runs else None
    row = [str(count), NONE if reference is None else f"{statistics.median(reference):.1f}"]
    for name in others:
        row.append(
            NONE
            if reference is None or name not in runs
            else str(paired_ratio(speeds(runs[name], first_step=first_step), reference)) + " *" * (name in result.less)
        )
    best = best_peer(runs, PEER_NAMES)
    if best is None or OURS not in runs:
        return [*row, NONE]
    return [*row, f"{_over(runs, OURS, best, first_step)} ({best}{'*' * (best in result.less)})"]


def _over(runs: Runs, one: str, other: str, first_step: bool = True) -> Ratio:
    return paired_ratio(speeds(runs[one], first_step=first_step), speeds(runs[other], first_step=first_step))


def learning(results: Sequence[CellResult]) -> Grid:
    """What everyone learnt."""
    rows = []
    for result in results:
        for name, runs in result.runs.items():
            rows.append(
                (
                    result.cell.name,
                    name,
                    str(runs[0].steps),
                    str(runs[0].examples),
                    *(_mean(runs, field) for field in ("train_loss", "eval_loss", "eval_accuracy")),
                    _verdict(result, name),
                )
            )
    note = (
        "Means over the repetitions. They agree where no two contenders differ by more than the tolerances of the cell,"
        " which the last column names, in the evaluation's loss and accuracy; else it has no ratios, the command fails."
        " A peer that learns less than HF's defaults, or ours, is marked, and left out of this comparison."
    )
    header = ("cell", "contender", "steps", "examples", "train loss", "eval loss", "eval accuracy", "check")
    return Grid("The same learning", note, header, tuple(rows))


def _verdict(result: CellResult, name: str) -> str:
    tolerances = "{} and {}".format(*result.tolerances)
    if name in result.less:
        return f"less than {REFERENCE} or {OURS} by more than {tolerances}"
    return "; ".join(result.complaints) or f"agree to {tolerances}"


def _mean(runs: Sequence[Result], field: str) -> str:
    return f"{statistics.fmean(getattr(run, field) for run in runs):.3f}"


def variants(results: Sequence[CellResult], contenders: Sequence[Contender]) -> Grid | None:
    """Ours with other flags against ours; None where there are no variants."""
    chosen = [each for each in contenders if each.is_ours and each.name != OURS]
    rows = [
        (result.cell.text, each.name, f"`{' '.join(each.flags)}`", str(_over(result.runs, each.name, OURS)))
        for result in results
        for each in chosen
        if not result.complaints and OURS in result.runs
    ]
    note = "Ours with these flags, times as fast as ours: below 1 is what the idea that was left out gains."
    return (
        Grid("Left out one at a time", note, ("work", "variant", "flags", "over ours"), tuple(rows)) if rows else None
    )


def utilisation(results: Sequence[CellResult]) -> Grid | None:
    """Model FLOPs utilisation on a GPU; None on a CPU."""
    rows = [
        (result.cell.text, name, f"{share:.1%}")
        for result in results
        if result.mfu
        for name, share in result.mfu.items()
    ]
    note = "Median over the repetitions; FLOPs of the tokens that are not padding, against the GPU's dense bf16 peak."
    return Grid("Model FLOPs utilisation", note, ("work", "contender", "MFU"), tuple(rows)) if rows else None


def startup(measured: Mapping[str, Mapping[str, Sequence[float]]], baseline: str) -> Grid:
    """Seconds from process start to the end of step 1, by model and contender; of the baseline to its model."""
    rows = []
    for model, by_name in measured.items():
        for name, seconds in by_name.items():
            over = NONE if name == baseline else str(paired_ratio(seconds, by_name[baseline]))
            rows.append((model, name, f"{statistics.median(seconds):.2f}", over))
    note = (
        "One rank, caches warm: start of the rank's process to the end of step 1, in seconds, median. The first line"
        " of each model imports torch and its class the ordinary way and builds it, no more. Ratio with 95 % interval."
    )
    return Grid("Start-up", note, ("model", "contender", "seconds", "times the first line"), tuple(rows))


def markdown(title: str, facts: Mapping[str, str], grids: Sequence[Grid]) -> str:
    """The whole file.

    Args:
        title: Its heading.
        facts: Date, machine, versions, command.
        grids: The tables.
    """
    parts = [f"# {title}\n\n" + "\n".join(f"- {name}: {value}" for name, value in facts.items())]
    for grid in grids:
        table = [_line(grid.header), _line(["---"] * len(grid.header)), *map(_line, grid.rows)]
        parts.append(f"## {grid.title}\n\n{grid.note}\n\n" + "\n".join(table))
    return "\n\n".join(parts) + "\n"


def command_line(module: str, words: Sequence[str]) -> str:
    """The command that made a table, without where somebody's disk had room for its data.

    Example:
        >>> command_line("tests.benchmarks", ["--repeat", "3", "--work", "/data", "--cells", "core"])
        '`python -m tests.benchmarks --repeat 3 --cells core`'
    """
    left = list(words)
    while "--work" in left:
        at = left.index("--work")
        del left[at : at + 2]
    return f"`python -m {module} {shlex.join(left)}`"


def facts(module: str, machine: Mapping[str, str]) -> dict[str, str]:
    """What stands above a table: when, on what machine, and by which command, this one, it was made."""
    date = datetime.datetime.now(datetime.UTC).date().isoformat()
    return {"date": date, **machine, "command": command_line(module, sys.argv[1:])}


def publish(title: str, made: Mapping[str, str], grids: Sequence[Grid], out: Path | None) -> None:
    """Prints tables as Markdown, and puts them into a page where one is named."""
    text = markdown(title, made, grids)
    print(text, end="")
    if out is not None:
        write_part(out, title, text)


def write_part(page: Path, title: str, part: str) -> None:
    """Puts what `markdown` made into a page, in place of the part of the same title; other parts stay as they are."""
    before = page.read_text(encoding="utf-8") if page.exists() else ""
    parts = {text.partition("\n")[0]: text for text in re.split(r"^# ", before, flags=re.MULTILINE)[1:]}
    parts[title] = part.removeprefix("# ")
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text("\n".join(f"# {text.rstrip()}\n" for text in parts.values()), encoding="utf-8")


def _line(values: Sequence[str]) -> str:
    return "| " + " | ".join(value.replace("|", "\\|") for value in values) + " |"


def for_terminal(grid: Grid) -> Table:
    """The same table for a terminal."""
    table = Table(title=grid.title, caption=grid.note, box=rich.box.SIMPLE)
    for name in grid.header:
        table.add_column(name)
    for row in grid.rows:
        table.add_row(*(value.replace("[", r"\[") for value in row))
    return table
