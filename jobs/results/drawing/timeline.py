"""Draws the timeline of one step: the phases of every rank, and the exposed and overlapped part of its buckets."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from disttrain.errors import UserError
from jobs.planning.labels import run_name
from jobs.results.drawing.step_lanes import Lane, Timeline, read_timeline
from jobs.results.drawing.step_spans import PHASE_NAMES
from jobs.results.text_table import binary_size

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# The palette of Okabe and Ito, which colour-blind people can distinguish. In grey its colours differ in lightness, and
# only the exposed part is hatched.
_EXPOSED: dict[str, Any] = {"facecolor": "#D55E00", "edgecolor": "white", "hatch": "////", "linewidth": 0.5}
_OVERLAPPED: dict[str, Any] = {"facecolor": "#C6E4F6", "edgecolor": "#0072B2", "linewidth": 0.8}
_LOOKS: tuple[dict[str, Any], ...] = (
    {"facecolor": "#BBBBBB", "edgecolor": "white"},
    {"facecolor": "#56B4E9", "edgecolor": "white"},
    {"facecolor": "#0072B2", "edgecolor": "white"},
    _EXPOSED,
    {"facecolor": "#F0E442", "edgecolor": "white"},
)
_PHASES: dict[str, dict[str, Any]] = dict(zip(PHASE_NAMES, _LOOKS, strict=True))
_LAST_READY: dict[str, Any] = {"color": "black", "linestyle": "--", "linewidth": 1.2}
_EXPOSED_TEXT, _OVERLAPPED_TEXT = "#A03F00", "#005A8C"
_TEXT_COLORS = {"backward compute": "white"}  # all other phases have black text
# With very many buckets a bar is so thin that only its edge would be visible.
_THIN: dict[str, Any] = {"linewidth": 0.0, "hatch": None}

# All sizes are in inches, like the units of the vertical axis.
_WIDTH, _PHASE, _GAP, _BUCKET, _ALL_BUCKETS, _LEAST_LABELLED, _FOOT = 9.0, 0.3, 0.35, 0.17, 10.0, 0.1, 0.21
_CHARACTER = 0.075  # an upper estimate of a character's width


def timeline(run_dir: Path, label: str, step: int | None = None) -> Figure:
    """One step of the first eight ranks of a run, on one axis in milliseconds of rank 0's clock.

    Args:
        run_dir: The folder of a run with detailed_timing.
        label: The label of the run.
        step: The number of the step, from 1; None for the measured step whose step_ms on rank 0 is the median.

    Raises:
        UserError: The step does not exist, its buckets were not timed, or matplotlib is missing.
    """
    return draw(read_timeline(run_dir, label, step))


def draw(shown: Timeline) -> Figure:
    """The figure. Every bar has its own name (gid), like `rank0-forward` or `rank1-bucket2-hidden`.

    Raises:
        UserError: matplotlib is missing.
    """
    rows = sum(len(lane.exchange.bucket_bytes) for lane in shown.lanes)
    bucket = min(_BUCKET, _ALL_BUCKETS / rows)
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
    axes.set_xlabel("ms on rank 0's clock, from its start of the step")
    axes.grid(axis="x", color="#E5E5E5", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    figure.suptitle(_title(shown), fontsize=11)
    _legend(figure)
    return figure


def _draw_lane(axes: Axes, lane: Lane, origin: float, top: float, bucket: float) -> list[tuple[float, str]]:
    """Draws one rank from `top` downwards, and returns the position and the label of each of its rows."""
    buckets = len(lane.exchange.bucket_bytes)
    bottom = top + _PHASE + buckets * bucket
    for name, begin, end in lane.phases():
        gid = f"rank{lane.rank}-{name.replace(' ', '-')}"
        _bar(axes, gid, (begin - origin, end - origin), top, _PHASE, _PHASES[name])
        _name_phase(axes, name, begin - origin, end - origin, top)
        if name == "exposed":
            _shade(axes, begin - origin, end - origin, top, bottom)
    labels = [(top + _PHASE / 2, f"rank {lane.rank} on {lane.host}")]
    thin: dict[str, Any] = {}
    if bucket < _LEAST_LABELLED:
        thin = _THIN
    for index, (ready, done) in enumerate(lane.buckets()):
        row = top + _PHASE + index * bucket
        split = min(max(ready, lane.computed_ms), done)
        for name, look, begin, end in (("hidden", _OVERLAPPED, ready, split), ("exposed", _EXPOSED, split, done)):
            gid = f"rank{lane.rank}-bucket{index + 1}-{name}"
            _bar(axes, gid, (begin - origin, end - origin), row + 0.15 * bucket, 0.7 * bucket, {**look, **thin})
        if not thin:
            labels.append((row + bucket / 2, f"bucket {index + 1}, {binary_size(lane.exchange.bucket_bytes[index])}"))
    overlapped = f"overlapped {_ms(lane.step.times.overlapped_comm_ms or 0.0)} "
    _emphasise(axes, overlapped, lane.computed_ms - origin, bottom + _FOOT - 0.04, "right", _OVERLAPPED_TEXT)
    return labels


def _bar(axes: Axes, gid: str, span: tuple[float, float], top: float, height: float, look: dict[str, Any]) -> None:
    from matplotlib.patches import Rectangle

    begin, end = span
    if end > begin:
        axes.add_patch(Rectangle((begin, top), end - begin, height, gid=gid, **look))


def _shade(axes: Axes, begin: float, end: float, top: float, bottom: float) -> None:
    """Shades the exposed time in all rows of a rank: the step then only waits for its buckets."""
    from matplotlib.patches import Rectangle

    axes.add_patch(Rectangle((begin, top), end - begin, bottom - top, facecolor="#FBE3D3", zorder=0.6))
    axes.plot([begin, begin], [top, bottom], **_LAST_READY, zorder=3)


def _name_phase(axes: Axes, name: str, begin: float, end: float, top: float) -> None:
    """Writes the name and time of a phase: of the exposed phase above the bar, of the others inside it if they fit."""
    middle = (begin + end) / 2
    if name == "exposed":
        _emphasise(axes, f"exposed {_ms(end - begin)}", middle, top - 0.05, "center", _EXPOSED_TEXT)
        return
    left, right = axes.get_xlim()
    room = (end - begin) / (right - left) * _WIDTH * 0.75  # the labels of the rows take a quarter of the width
    fitting = [text for text in (f"{name} {_ms(end - begin)}", _ms(end - begin)) if len(text) * _CHARACTER <= room]
    if fitting:
        color = _TEXT_COLORS.get(name, "black")
        axes.text(middle, top + _PHASE / 2, fitting[0], ha="center", va="center", color=color, fontsize=8)


def _emphasise(axes: Axes, text: str, x: float, bottom: float, side: Literal["center", "right"], color: str) -> None:
    axes.text(x, bottom, text, ha=side, va="bottom", color=color, fontsize=9, fontweight="bold")


def _label_rows(axes: Axes, labels: Sequence[tuple[float, str]]) -> None:
    axes.set_yticks([y for y, _ in labels], [text for _, text in labels], fontsize=8)
    for label in axes.get_yticklabels():
        if label.get_text().startswith("rank"):
            label.set(fontsize=9, fontweight="bold")
    axes.tick_params(axis="y", length=0)


def _title(shown: Timeline) -> str:
    run, lanes = shown.run, shown.lanes
    ranks = ""
    if len(lanes) < run.world_size:
        ranks = f", ranks 0 to {len(lanes) - 1} of {run.world_size}"
    times = "; ".join(
        f"rank {lane.rank}: exposed {_ms(lane.step.times.exposed_comm_ms or 0.0)},"
        f" overlapped {_ms(lane.step.times.overlapped_comm_ms or 0.0)}"
        for lane in lanes[:2]
    )
    return f"run {run_name(run.run_id, shown.label)}, step {shown.number}{ranks}\n{times}"


def _legend(figure: Figure) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    entries: list[Patch | Line2D] = [Patch(**look, label=name) for name, look in _PHASES.items() if name != "exposed"]
    entries += [
        Patch(**_OVERLAPPED, label="all-reduce, overlapped with the backward pass"),
        Patch(**_EXPOSED, label="all-reduce, exposed: the step waits for it"),
        Line2D([], [], **_LAST_READY, label="last bucket ready"),
    ]
    figure.legend(handles=entries, loc="outside lower center", ncols=4, fontsize=8, frameon=False)


def new_figure(width: float, height: float) -> Figure:
    """An empty figure that needs no display; width and height are in inches.

    Raises:
        UserError: matplotlib is missing, for example on a login node without the heavy packages.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UserError(f"figures need matplotlib: {error}", hint="in the checkout: pip install '.[report]'") from error
    return Figure(figsize=(width, height), layout="constrained")


def _ms(time_ms: float) -> str:
    if time_ms < 100:
        return f"{time_ms:.3g} ms"
    return f"{time_ms:.0f} ms"
