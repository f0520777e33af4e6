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
from tests.benchmarks.contenders import LIMIT, OURS, PEER_NAMES, REFERENCE, Contender
from tests.benchmarks.stats import Ratio, Runs, best_peer, paired_ratio, speeds, that_learn
from tests.benchmarks.work import Result

NONE = "-"
HEAD = "# Benchmarks\n\nOurs is this training core; peers are HF Trainer, accelerate and Fabric.\n"


@dataclass(frozen=True)
class Grid:
    """A table of texts."""

    title: str
    note: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class CellResult:
    """The measurements of one cell."""

    cell: Cell
    runs: Runs
    tolerances: tuple[float, float]  # for the evaluation's loss and accuracy
    complaints: tuple[str, ...] = ()  # differences if contenders did not learn the same
    weaker: tuple[str, ...] = ()  # peers that learned less than the reference
    mfu: Mapping[str, float] | None = None  # share of the GPU's peak, by contender; None on a CPU


def throughput(results: Sequence[CellResult], contenders: Sequence[Contender], *, first_step: bool = True) -> Grid:
    """The speeds relative to HF Trainer's defaults, and of ours relative to the best peer and to the limit."""
    others = [item for item in contenders if item.name != REFERENCE and item.name in (OURS, *PEER_NAMES)]
    header = ["work", "runs", "HF defaults, examples/s", *(item.label for item in others), "ours / best peer"]
    has_limit = any(item.name == LIMIT for item in contenders)
    rows = []
    for result in results:
        row = [result.cell.text, *_throughput_row(result, [item.name for item in others], first_step)]
        rows.append((*row, _over_limit(result, first_step)) if has_limit else tuple(row))
    if first_step:
        title, note = (
            "Throughput",
            "Speed divided by that of HF Trainer's defaults, over complete epochs, with the first step. Work before the"
            " first step is not included: the token ids of all contenders, and the decoded images of ours.",
        )
    else:
        title = "Throughput without the first step"
        note = "The same runs without their first step, which includes compilation on a GPU."
    if has_limit:
        header.append("ours / limit")
        note += " The limit computes only the matrix products of ours, on the same batches, and nothing else."
    if any(result.weaker for result in results):
        note += (
            " A peer with a * learned less than HF's defaults or ours in the same steps, by more than the tolerance."
        )
    note += " Median over the repetitions [95 % interval: Student's t of the log ratios, paired by repetition]."
    return Grid(title, note, tuple(header), tuple(rows))


def _throughput_row(result: CellResult, others: Sequence[str], first_step: bool) -> list[str]:
    runs = result.runs
    count = max((len(repetitions) for repetitions in runs.values()), default=0)
    if result.complaints:
        return [str(count), "did not learn the same", *([NONE] * (len(others) + 1))]
    reference = speeds(runs[REFERENCE], first_step=first_step) if REFERENCE in runs else None
    row = [str(count), NONE if reference is None else f"{statistics.median(reference):.1f}"]
    for name in others:
        if reference is None or name not in runs:
            row.append(NONE)
            continue
        ratio = paired_ratio(speeds(runs[name], first_step=first_step), reference)
        row.append(f"{ratio} *" if name in result.weaker else str(ratio))
    best = best_peer(runs, PEER_NAMES)
    if best is None or OURS not in runs:
        return [*row, NONE]
    return [*row, f"{_over(runs, OURS, best, first_step)} ({best}{'*' * (best in result.weaker)})"]


def _over_limit(result: CellResult, first_step: bool) -> str:
    if result.complaints or OURS not in result.runs or LIMIT not in result.runs:
        return NONE
    return str(_over(result.runs, OURS, LIMIT, first_step))


def _over(runs: Runs, name: str, other: str, first_step: bool = True) -> Ratio:
    return paired_ratio(speeds(runs[name], first_step=first_step), speeds(runs[other], first_step=first_step))


def learning(results: Sequence[CellResult]) -> Grid:
    """The losses and accuracies of all contenders that learn."""
    rows = []
    for result in results:
        for name, runs in that_learn(result.runs).items():
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
        "Means over the repetitions. The contenders of a cell agree if no two of them differ in evaluation loss and"
        " accuracy by more than the tolerances in the last column. Otherwise the cell has no ratios and the command"
        " fails. A peer that learns less than HF's defaults or ours is marked, and is not part of this comparison."
    )
    header = ("cell", "contender", "steps", "examples", "train loss", "eval loss", "eval accuracy", "check")
    return Grid("The same learning", note, header, tuple(rows))


def _verdict(result: CellResult, name: str) -> str:
    tolerances = "{} and {}".format(*result.tolerances)
    if name in result.weaker:
        return f"less than {REFERENCE} or {OURS} by more than {tolerances}"
    return "; ".join(result.complaints) or f"agree to {tolerances}"


def _mean(runs: Sequence[Result], field: str) -> str:
    return f"{statistics.fmean(getattr(run, field) for run in runs):.3f}"


def variants(results: Sequence[CellResult], contenders: Sequence[Contender]) -> Grid | None:
    """The variants of ours relative to ours; None without variants."""
    chosen = [contender for contender in contenders if contender.is_ours and contender.name != OURS]
    rows = [
        (result.cell.text, variant.name, f"`{' '.join(variant.flags)}`", str(_over(result.runs, variant.name, OURS)))
        for result in results
        for variant in chosen
        if not result.complaints and OURS in result.runs
    ]
    if not rows:
        return None
    note = "Speed of ours with these flags divided by that of ours. A value below 1 is the gain of the removed feature."
    return Grid("Features removed one at a time", note, ("work", "variant", "flags", "over ours"), tuple(rows))


def utilisation(results: Sequence[CellResult]) -> Grid | None:
    """Model FLOPs utilisation on a GPU; None on a CPU."""
    rows = [
        (result.cell.text, name, f"{share:.1%}")
        for result in results
        if result.mfu
        for name, share in result.mfu.items()
    ]
    note = "Median over the repetitions: FLOPs of the tokens without padding, divided by the GPU's dense bf16 peak."
    return Grid("Model FLOPs utilisation", note, ("work", "contender", "MFU"), tuple(rows)) if rows else None


def startup(measured: Mapping[str, Mapping[str, Sequence[float]]], baseline: str) -> Grid:
    """Seconds from process start to the end of step 1, by model and contender; for the baseline, to its model."""
    rows = []
    for model, by_name in measured.items():
        for name, seconds in by_name.items():
            over = NONE if name == baseline else str(paired_ratio(seconds, by_name[baseline]))
            rows.append((model, name, f"{statistics.median(seconds):.2f}", over))
    note = (
        "One rank, warm caches: median seconds from the start of the rank's process to the end of step 1. The first row"
        " of each model only imports torch and the model's class in the ordinary way, and builds the model. Ratio with"
        " 95 % interval."
    )
    return Grid("Start-up", note, ("model", "contender", "seconds", "ratio to the first row"), tuple(rows))


def spread(values: Sequence[float], form: str) -> str:
    """The median [minimum to maximum]; only the median if there is one value."""
    median = form.format(statistics.median(values))
    return median if len(values) < 2 else f"{median} [{form.format(min(values))} to {form.format(max(values))}]"


def markdown(title: str, facts: Mapping[str, str], grids: Sequence[Grid]) -> str:
    """The Markdown text of a part.

    Args:
        title: The heading of the part.
        facts: The date, the machine, the versions and the command.
        grids: The tables of the part.
    """
    parts = [f"## {title}\n\n" + "\n".join(f"- {name}: {value}" for name, value in facts.items())]
    for grid in grids:
        table = [_line(grid.header), _line(["---"] * len(grid.header)), *map(_line, grid.rows)]
        parts.append(f"### {grid.title}\n\n{grid.note}\n\n" + "\n".join(table))
    return "\n\n".join(parts) + "\n"


def command_line(module: str, words: Sequence[str]) -> str:
    """The command that made a table, without the folder for its data.

    Example:
        >>> command_line("tests.benchmarks", ["--repeat", "3", "--work", "/data", "--cells", "core"])
        '`python -m tests.benchmarks --repeat 3 --cells core`'
    """
    remaining = list(words)
    while "--work" in remaining:
        index = remaining.index("--work")
        del remaining[index : index + 2]
    return f"`python -m {module} {shlex.join(remaining)}`"


def facts(module: str, machine: Mapping[str, str]) -> dict[str, str]:
    """The lines above a table: the date, the machine, and the command of this process."""
    date = datetime.datetime.now(datetime.UTC).date().isoformat()
    return {"date": date, **machine, "command": command_line(module, sys.argv[1:])}


def publish(title: str, facts: Mapping[str, str], grids: Sequence[Grid], out: Path | None) -> None:
    """Prints tables as Markdown, and writes them to a page if one is given."""
    text = markdown(title, facts, grids)
    print(text, end="")
    if out is not None:
        write_part(out, title, text)


def write_part(page: Path, title: str, part: str) -> None:
    """Writes a part of `markdown` to a page, replacing the part with the same title; other parts do not change."""
    before = page.read_text(encoding="utf-8") if page.exists() else ""
    parts = {text.partition("\n")[0]: text for text in re.split(r"^## ", before, flags=re.MULTILINE)[1:]}
    parts[title] = part.removeprefix("## ")
    page.parent.mkdir(parents=True, exist_ok=True)
    sections = [f"## {text.rstrip()}\n" for text in parts.values()]
    page.write_text("\n".join([HEAD, *sections]), encoding="utf-8")


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
