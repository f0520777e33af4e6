"""The screen of `sweep status --watch`: the counts, a bar, the runs, and what needs attention; never more than fits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from disttrain.records.script_metrics import LOSS
from jobs.planning.plan import count_runs
from jobs.results.live.progress import RunProgress
from jobs.results.overview import ATTENTION, FAILED, section_lines, section_of
from jobs.results.result import Result
from jobs.results.tables import heading, state_style
from jobs.results.text_table import TextColumn, TextTable
from jobs.schedulers.answers import age_text
from jobs.slurm.squeue import QueuedJob
from jobs.slurm.states import JobPhase

_FRAME = 4  # the lines of a table above and below its rows
_MOST_NOTES = 2
_BARS = (10, 30)  # the least and the greatest width of the bar


@dataclass(frozen=True)
class View:
    """What the screen shows.

    Attributes:
        title: The name of the sweep and of its cluster.
        results: The runs; those that the sweep file no longer has are not shown.
        progress: How far runs have come that run, by run id.
        queue: What squeue lists, by job id.
        notices: Notices for the user.
        now_s: The time now, in seconds since 1970.
        asked_s: The time at which the scheduler was asked; None if it is asked for each screen.
    """

    title: str
    results: Sequence[Result]
    progress: Mapping[str, RunProgress] = field(default_factory=dict)
    queue: Mapping[str, QueuedJob] = field(default_factory=dict)
    notices: Sequence[str] = ()
    now_s: float = 0.0
    asked_s: float | None = None


def screen(view: View, width: int, height: int) -> Group:
    """The screen.

    If the runs do not fit, the table has those that run. Below it are the runs that need attention and those that
    failed, as in the overview of `sweep status`.

    Args:
        view: What to show.
        width: The width of the terminal in characters.
        height: The number of its lines.
    """
    present = [row for row in view.results if not row.dropped]
    first = _folded([heading(present, view.title)], width)
    notes = _folded([f"note: {notice}" for notice in view.notices], width)[:_MOST_NOTES]
    left = height - 1 - len(first) - 1 - len(notes)  # a line for the cursor, one for the bar
    sections = list(_sections(present, width, left))
    rows, counted = present, list[str]()
    if _FRAME + len(present) + len(sections) > left:
        rows = [row for row in present if row.phase is JobPhase.RUNNING]
        table_height = min(_FRAME + len(rows) + 1, max(left // 2, left - len(sections)))
        sections = list(_sections(present, width, left - table_height))
        shown = max(0, table_height - _FRAME - 1)
        counted = [f"running: {count_runs(len(rows))}"]
        if shown < len(rows):
            counted = [f"running: {count_runs(len(rows))}, the first {shown}"]
        rows = rows[:shown]
    parts: list[RenderableType] = [*_lines(first), _bar(present, view, width), *_lines(counted)]
    if rows:
        parts.append(_table(rows, view))
    return Group(*parts, *_lines(sections), *_lines(notes))


def shown_runs(results: Sequence[Result], height: int) -> list[Result]:
    """The runs that run and may be on a screen of this height: only their files are read."""
    return [row for row in results if row.phase is JobPhase.RUNNING and not row.dropped][:height]


def _bar(present: Sequence[Result], view: View, width: int) -> Table:
    """The bar of the sweep: a run that runs counts with its share of steps."""
    ended = sum(row.phase is JobPhase.FINISHED for row in present)
    shares = sum(view.progress[row.run_id].share for row in present if row.run_id in view.progress)
    asked = ""
    if view.asked_s is not None:
        asked = f"Slurm answered {age_text(max(0.0, view.now_s - view.asked_s))} ago"
    line = Table.grid(padding=(0, 1))
    for _ in range(4):
        line.add_column(no_wrap=True)  # one line, also on a narrow terminal
    line.add_row(
        "runs ended",
        ProgressBar(
            total=max(1, len(present)), completed=ended + shares, width=max(_BARS[0], min(_BARS[1], width - 50))
        ),
        f"{ended}/{len(present)}",
        asked,
    )
    return line


def _table(rows: Sequence[Result], view: View) -> TextTable:
    places = _places(view.queue)
    cells = [_cells(row, view, places) for row in rows]
    names = ("label", "state", "stage", "step", "loss", "samples/s", "time left")
    columns = zip(names, zip(*cells, strict=True), strict=True)
    return TextTable(
        [TextColumn(name, values, is_right=name not in names[:3]) for name, values in columns],
        [state_style(row.state) for row in rows],
    )


def _cells(row: Result, view: View, places: Mapping[str, str]) -> tuple[str, ...]:
    """The row of a run."""
    state = row.state.value
    if row.phase is JobPhase.PENDING:
        return (row.label, state, _waits(row, view, places), "", "", "", "")
    if row.phase is not JobPhase.RUNNING:
        figures = row.figures
        loss = figures.get("train_loss")
        if row.is_command:
            loss = row.metrics.get(LOSS, {}).get("last")
        steps, speed = str(figures.get("steps") or ""), _text(figures.get("samples_per_s"), 0)
        return (row.label, state, "", steps, _text(loss, 4), speed, "")
    progress = view.progress.get(row.run_id, RunProgress())
    step = ""
    if progress.steps is not None:
        step = f"{progress.step or 0}/{progress.steps}"
    elif progress.step is not None:  # of a script
        step = str(progress.step)
    left = ""
    if progress.left_s is not None and not row.scheduled.reason:  # a run without steps does not get there
        left = str(timedelta(seconds=round(progress.left_s)))
    return (
        row.label,
        state,
        progress.stage or "",
        step,
        _text(progress.loss, 4),
        _text(progress.samples_per_s, 0),
        left,
    )


def _text(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _waits(row: Result, view: View, places: Mapping[str, str]) -> str:
    """When a run that waits is expected to start; if Slurm does not know that, its place among those that wait."""
    job = view.queue.get(row.scheduled.job_id or "")
    if job is None:
        return ""
    if job.start_s is not None and job.start_s > view.now_s:
        return f"starts in {age_text(job.start_s - view.now_s)}"
    return places.get(job.job_id, "")


def _places(queue: Mapping[str, QueuedJob]) -> dict[str, str]:
    """The place of each job among the jobs of the sweep that wait: the highest priority first, then the lowest id."""
    waiting = [job for job in queue.values() if job.state.is_pending]
    ordered = sorted(waiting, key=lambda job: (-(job.priority or 0), _numbers(job.job_id)))
    return {job.job_id: f"place {place} of {len(ordered)}" for place, job in enumerate(ordered, start=1)}


def _numbers(job_id: str) -> list[int]:
    """The numbers in an id: 123_10 is after 123_9."""
    return [int(part) for part in job_id.split("_") if part.isdecimal()]


def _sections(present: Sequence[Result], width: int, height: int) -> Iterator[str]:
    """The runs that need attention and those that failed, each with its reason; at most half of the height for each."""
    sections: dict[str, list[Result]] = {ATTENTION: [], FAILED: []}
    for row in present:
        name = section_of(row)
        if name in sections:
            sections[name].append(row)
    filled = {name: rows for name, rows in sections.items() if rows}
    for number, (name, rows) in enumerate(filled.items()):
        blocks = ([_reason(row)] for row in rows)
        lines = _folded(section_lines(name, len(rows), blocks, width, height // (len(filled) - number)), width)
        height -= len(lines)
        yield from lines


def _reason(row: Result) -> str:
    if not row.scheduled.reason:
        return f"{row.name}  {row.state}"
    return f"{row.name}  {row.state}: {row.scheduled.reason}"


def _lines(lines: Sequence[str]) -> list[Text]:
    """The lines for rich, which would read [1-2] in a string as markup."""
    return [Text(line, no_wrap=True, overflow="crop") for line in lines]


def _folded(lines: Sequence[str] | Iterator[str], width: int) -> list[str]:
    """The lines as a terminal wraps them."""
    return [line[start : start + width] for line in lines for start in range(0, max(1, len(line)), width)]
