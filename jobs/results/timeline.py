"""The timeline of one step, drawn: what every rank does when, and what of its gradient exchange is hidden."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from disttrain.analysis.comm_overlap import Exchange
from disttrain.analysis.measured_steps import MeasuredStep, measured_steps, split_by_start, steps_after_warmup
from disttrain.errors import UserError
from disttrain.records.record_files import RUN_NAME, from_json, metrics_name, read_records
from disttrain.records.record_types import ClockRecord, ExchangeRecord, Record, StartRecord, StepRecord
from disttrain.records.summary_types import RunInfo

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NOT_WATCHED = "set detailed_timing: true in base, on an allocation of several ranks"
_MOST_LANES = 8

# The palette of Okabe and Ito, which colour-blind people tell apart; in grey its parts differ in lightness, and only
# what is exposed is hatched.
_EXPOSED: dict[str, Any] = {"facecolor": "#D55E00", "edgecolor": "white", "hatch": "////", "linewidth": 0.5}
_HIDDEN: dict[str, Any] = {"facecolor": "#C6E4F6", "edgecolor": "#0072B2", "linewidth": 0.8}
_PHASES: dict[str, dict[str, Any]] = {
    "data": {"facecolor": "#BBBBBB", "edgecolor": "white"},
    "forward": {"facecolor": "#56B4E9", "edgecolor": "white"},
    "backward compute": {"facecolor": "#0072B2", "edgecolor": "white"},
    "exposed": _EXPOSED,
    "optimizer": {"facecolor": "#F0E442", "edgecolor": "white"},
}
_LAST_READY: dict[str, Any] = {"color": "black", "linestyle": "--", "linewidth": 1.2}
_EXPOSED_TEXT, _HIDDEN_TEXT = "#A03F00", "#005A8C"
_ON_DARK = "backward compute"
_THIN: dict[str, Any] = {
    "linewidth": 0.0,
    "hatch": None,
}  # a bar of a bucket among very many: its edge would be all of it

# Inches, which are the units of the vertical axis too.
_WIDTH, _PHASE, _GAP, _BUCKET, _BUCKETS_IN_ALL, _NAMED, _FOOT = 9.0, 0.3, 0.35, 0.17, 10.0, 0.1, 0.21
_CHARACTER = 0.075  # width of one, rather too much


@dataclass(frozen=True)
class Lane:
    """One rank in the step that is drawn."""

    rank: int
    host: str
    step: MeasuredStep
    exchange: Exchange

    @property
    def computed_ms(self) -> float:
        """When its last bucket was ready, on rank 0's clock: from there on nothing is hidden."""
        return self.step.start_ms + self.exchange.computed_ms

    def phases(self) -> Iterator[tuple[str, float, float]]:
        """(name, begin, end), on rank 0's clock."""
        step, begin = self.step, self.step.start_ms
        exposed = step.exposed_comm_ms or 0.0
        lengths = (step.data_ms, step.forward_ms, step.backward_ms - exposed, exposed, step.optimizer_ms)
        for name, length in zip(_PHASES, lengths, strict=True):
            yield name, begin, begin + length
            begin += length

    def buckets(self) -> Iterator[tuple[float, float]]:
        """(ready, done), on rank 0's clock."""
        for ready, done in zip(self.exchange.ready_ms, self.exchange.done_ms, strict=True):
            yield self.step.start_ms + ready, self.step.start_ms + done


@dataclass(frozen=True)
class Timeline:
    """One step of the first ranks of a run."""

    run: RunInfo
    number: int
    lanes: tuple[Lane, ...]


def timeline(run_dir: Path, step: int | None = None) -> Figure:
    """One step of the first eight ranks of a run, on one axis in milliseconds of rank 0's clock.

    Args:
        run_dir: Of a run with detailed_timing.
        step: Its number, from 1; None: the measured step whose step_ms on rank 0 is the median.

    Raises:
        UserError: There is no such step, its buckets were not watched, or matplotlib is missing.
    """
    return draw(read_timeline(run_dir, step))


def read_timeline(run_dir: Path, step: int | None = None) -> Timeline:
    """What `timeline` draws; arguments and errors are its own."""
    run = from_json(RunInfo, json.loads((run_dir / RUN_NAME).read_text(encoding="utf-8")))
    files = [run_dir / metrics_name(rank) for rank in range(min(run.world_size, _MOST_LANES))]
    number = step or _median_step(files[0], run.train["timing_warmup_steps"])
    lanes = tuple(_lane(run, rank, file, number) for rank, file in enumerate(files))
    return Timeline(run, number, lanes)


def _median_step(file: Path, warmup_steps: int) -> int:
    """Number of the measured step that takes as long as the median; of all steps where none is measured."""
    records = [record for record in read_records(file) if isinstance(record, StartRecord | StepRecord)]
    steps = steps_after_warmup(records, warmup_steps) or steps_after_warmup(records, 0)
    return sorted(steps, key=lambda record: record.step_ms)[(len(steps) - 1) // 2].step


def _lane(run: RunInfo, rank: int, file: Path, number: int) -> Lane:
    kept: list[Record] = []
    numbers: set[int] = set()
    for record in read_records(file):
        if isinstance(record, StepRecord):
            numbers.add(record.step)
        if _shows(record, number):
            kept.append(record)
    for start in split_by_start(kept):
        host = next((record.host for record in start if isinstance(record, StartRecord)), "")
        for step in measured_steps(start, 0):
            if step.exchange:
                return Lane(rank, host, step, step.exchange)
    if number in numbers:
        raise UserError(f"run {run.run_id} has no times of buckets in step {number}", hint=NOT_WATCHED)
    there = f"steps {min(numbers)} to {max(numbers)}" if numbers else "no steps"
    raise UserError(f"run {run.run_id} has no step {number}", where="--step", hint=f"there are {there}")


def _shows(record: Record, number: int) -> bool:
    """Whether a step's lane is drawn from a record: a login node has no room for all exchanges of a long run."""
    if isinstance(record, StepRecord | ExchangeRecord):
        return record.step == number
    return isinstance(record, StartRecord | ClockRecord)


def draw(shown: Timeline) -> Figure:
    """The figure; every bar has a name of its own (gid), as `rank0-forward` or `rank1-bucket2-hidden`.

    Raises:
        UserError: matplotlib is missing.
    """
    rows = sum(len(lane.exchange.bucket_bytes) for lane in shown.lanes)
    bucket = min(_BUCKET, _BUCKETS_IN_ALL / rows)
    height = rows * bucket + len(shown.lanes) * (_GAP + _PHASE) + _FOOT
    figure = new_figure(_WIDTH, height + 1.6)
    axes = figure.add_subplot()
    origin = shown.lanes[0].step.start_ms
    begin = min(lane.step.start_ms for lane in shown.lanes) - origin
    end = max(end for lane in shown.lanes for *_, end in lane.phases()) - origin
    axes.set(xlim=(begin - 0.01 * (end - begin), end + 0.01 * (end - begin)), ylim=(height, 0))
    top, labels = 0.0, []
    for lane in shown.lanes:
        labels += _draw_lane(axes, lane, origin, top + _GAP, bucket)
        top += _GAP + _PHASE + len(lane.exchange.bucket_bytes) * bucket
    _label_rows(axes, labels)
    axes.set_xlabel("ms on rank 0's clock, from where it begins the step")
    axes.grid(axis="x", color="#E5E5E5", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    figure.suptitle(_title(shown), fontsize=11)
    _legend(figure)
    return figure


def _draw_lane(axes: Axes, lane: Lane, origin: float, top: float, bucket: float) -> list[tuple[float, str]]:
    """Draws one rank from `top` down, and gives what its rows are called: (where, name)."""
    buckets = len(lane.exchange.bucket_bytes)
    bottom = top + _PHASE + buckets * bucket
    for name, begin, end in lane.phases():
        gid = f"rank{lane.rank}-{name.replace(' ', '-')}"
        _bar(axes, gid, (begin - origin, end - origin), top, _PHASE, _PHASES[name])
        _name_phase(axes, name, begin - origin, end - origin, top)
        if name == "exposed":
            _shade(axes, begin - origin, end - origin, top, bottom)
    labels = [(top + _PHASE / 2, f"rank {lane.rank} on {lane.host}")]
    thin = {} if bucket >= _NAMED else _THIN
    for index, (ready, done) in enumerate(lane.buckets()):
        row = top + _PHASE + index * bucket
        split = min(max(ready, lane.computed_ms), done)
        for name, look, begin, end in (("hidden", _HIDDEN, ready, split), ("exposed", _EXPOSED, split, done)):
            gid = f"rank{lane.rank}-bucket{index + 1}-{name}"
            _bar(axes, gid, (begin - origin, end - origin), row + 0.15 * bucket, 0.7 * bucket, {**look, **thin})
        if not thin:
            labels.append((row + bucket / 2, f"bucket {index + 1}, {binary_size(lane.exchange.bucket_bytes[index])}"))
    hidden = f"hidden {_ms(lane.step.overlapped_comm_ms or 0.0)} "
    _emphasise(axes, hidden, lane.computed_ms - origin, bottom + _FOOT - 0.04, "right", _HIDDEN_TEXT)
    return labels


def _bar(axes: Axes, gid: str, span: tuple[float, float], top: float, height: float, look: dict[str, Any]) -> None:
    from matplotlib.patches import Rectangle

    begin, end = span
    if end > begin:
        axes.add_patch(Rectangle((begin, top), end - begin, height, gid=gid, **look))


def _shade(axes: Axes, begin: float, end: float, top: float, bottom: float) -> None:
    """What is exposed, through all of a rank's rows: in this band its buckets are waited for."""
    from matplotlib.patches import Rectangle

    axes.add_patch(Rectangle((begin, top), end - begin, bottom - top, facecolor="#FBE3D3", zorder=0.6))
    axes.plot([begin, begin], [top, bottom], **_LAST_READY, zorder=3)


def _name_phase(axes: Axes, name: str, begin: float, end: float, top: float) -> None:
    """Its name and time: what is exposed above the bar, the others in it where they fit."""
    middle = (begin + end) / 2
    if name == "exposed":
        _emphasise(axes, f"exposed {_ms(end - begin)}", middle, top - 0.05, "center", _EXPOSED_TEXT)
        return
    left, right = axes.get_xlim()
    room = (end - begin) / (right - left) * _WIDTH * 0.75  # of the width, names of rows take the rest
    fitting = [text for text in (f"{name} {_ms(end - begin)}", _ms(end - begin)) if len(text) * _CHARACTER <= room]
    if fitting:
        color = "white" if name == _ON_DARK else "black"
        axes.text(middle, top + _PHASE / 2, fitting[0], ha="center", va="center", color=color, fontsize=8)


def _emphasise(axes: Axes, text: str, at: float, bottom: float, side: Literal["center", "right"], color: str) -> None:
    axes.text(at, bottom, text, ha=side, va="bottom", color=color, fontsize=9, fontweight="bold")


def _label_rows(axes: Axes, labels: Sequence[tuple[float, str]]) -> None:
    axes.set_yticks([at for at, _ in labels], [text for _, text in labels], fontsize=8)
    for label in axes.get_yticklabels():
        if label.get_text().startswith("rank"):
            label.set(fontsize=9, fontweight="bold")
    axes.tick_params(axis="y", length=0)


def _title(shown: Timeline) -> str:
    run, lanes = shown.run, shown.lanes
    some = f", ranks 0 to {len(lanes) - 1} of {run.world_size}" if len(lanes) < run.world_size else ""
    told = "; ".join(
        f"rank {lane.rank}: exposed {_ms(lane.step.exposed_comm_ms or 0.0)},"
        f" overlapped {_ms(lane.step.overlapped_comm_ms or 0.0)}"
        for lane in lanes[:2]
    )
    return f"{run.train['model']}, run {run.run_id} on {run.allocation}, step {shown.number}{some}\n{told}"


def _legend(figure: Figure) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    entries: list[Patch | Line2D] = [Patch(**look, label=name) for name, look in _PHASES.items() if name != "exposed"]
    entries += [
        Patch(**_HIDDEN, label="exchange, hidden: gradients are still computed"),
        Patch(**_EXPOSED, label="exchange, exposed: the step waits for it"),
        Line2D([], [], **_LAST_READY, label="last bucket ready"),
    ]
    figure.legend(handles=entries, loc="outside lower center", ncols=4, fontsize=8, frameon=False)


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, in inches, that needs no display.

    Raises:
        UserError: matplotlib is missing, as on a login node without the heavy packages.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UserError(f"figures need matplotlib: {error}", hint="pip install matplotlib") from error
    return Figure(figsize=(width, height), layout="constrained")


def binary_size(size_bytes: float) -> str:
    """Bytes for people, in powers of 1024.

    Example:
        >>> binary_size(4096), binary_size(1.25 * 2**20), binary_size(4)
        ('4 KiB', '1.25 MiB', '4 B')
    """
    power = min(3, int(math.log2(max(1, size_bytes)) // 10))
    return f"{size_bytes / 1024**power:.3g} {('B', 'KiB', 'MiB', 'GiB')[power]}"


def _ms(time_ms: float) -> str:
    return f"{time_ms:.3g} ms" if time_ms < 100 else f"{time_ms:.0f} ms"
