"""The status of a sweep whose runs do not fit on the screen: the counts, and the runs that a user asks about first."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from jobs.planning.plan import count_runs
from jobs.results.result import Result
from jobs.results.tables import dropped_heading, heading, run_lines
from jobs.results.text_table import text_width
from jobs.slurm.states import JobPhase, State
from jobs.storage.ledger import read_ledger
from jobs.storage.sweep_folder import SweepFolder

ATTENTION, FAILED, RUNNING = "need attention", "failed", "running"


def overview(
    results: Sequence[Result], folder: SweepFolder, title: str, width: int | None, height: int
) -> Iterator[str]:
    """The lines of the status, at most a screen.

    Args:
        results: The rows.
        folder: The folder of the sweep.
        title: The name of the sweep and of its cluster.
        width: The width of the terminal in characters; None for a log or a pipe, which wraps no line.
        height: The number of lines of the screen.
    """
    present = [row for row in results if not row.dropped]
    dropped = [row for row in results if row.dropped]
    first = [heading(present, title)]
    if dropped:
        first.append(dropped_heading(dropped))
    last = "sweep status --all-runs shows every run, sweep collect -o FILE writes every measurement"
    yield from first
    sections: dict[str, list[Result]] = {ATTENTION: [], FAILED: [], RUNNING: []}
    for row in present:
        if (name := section_of(row)) is not None:
            sections[name].append(row)
    filled = {name: rows for name, rows in sections.items() if rows}
    jobs = read_ledger(folder.path).jobs
    left = height - 1 - _height([*first, last], width)  # a line for the next prompt
    for number, (name, rows) in enumerate(filled.items()):
        blocks = (run_lines(row, folder, jobs.get(row.run_id, ())) for row in rows)
        if name == RUNNING:
            blocks = ([", ".join(filter(None, (f"{row.name}  {row.state}", row.progress_text)))] for row in rows)
        lines = list(section_lines(name, len(rows), blocks, width, left // (len(filled) - number)))
        left -= _height(lines, width)
        yield from lines
    yield last


def section_of(row: Result) -> str | None:
    """The section in which a run is named; None if there is nothing to say about it."""
    if row.phase is JobPhase.FINISHED and not row.state.is_success:
        return FAILED
    # A reason to wait, or a file that is damaged.
    if row.scheduled.reason or row.phase is JobPhase.UNKNOWN or row.state is State.NOT_SUBMITTED:
        return ATTENTION
    if row.phase is JobPhase.RUNNING:
        return RUNNING
    return None


def section_lines(name: str, count: int, blocks: Iterable[list[str]], width: int | None, height: int) -> Iterator[str]:
    """The lines of a section: how many runs it has, and the first of them that fit into its height."""
    height -= 1
    shown: list[list[str]] = []
    for block in blocks:
        if _height(block, width) > height:
            break
        height -= _height(block, width)
        shown.append(block)
    first = ""
    if len(shown) < count:
        first = f", the first {len(shown)}"
    yield f"{name}: {count_runs(count)}{first}"
    for block in shown:
        yield from (f"  {line}" for line in block)


def _height(lines: Iterable[str], width: int | None) -> int:
    """The number of lines of a screen that some lines need: a terminal wraps long ones."""
    if width is None:
        return len(list(lines))
    return sum(max(1, -(-(text_width(line) + 2) // width)) for line in lines)
