"""Writes the figures of a sweep: the timeline of one step of each run, and the bus bandwidth of each link."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from disttrain.config.command.command_config import is_command
from disttrain.errors import UserError
from disttrain.records.json_values import DamagedFile, UnreadableFile, damaged
from disttrain.records.record_files import SUMMARY_NAME, from_json, metrics_name, read_records
from disttrain.records.record_types import LinkRecord, Record
from disttrain.records.summary_types import RunInfo
from jobs.planning.labels import Variation
from jobs.planning.plan import count_runs, has_bucket_times, is_link
from jobs.results.drawing.step_lanes import DETAILED_TIMING_HINT, NotInRun, read_lanes
from jobs.results.drawing.timeline import draw, new_figure
from jobs.results.text_table import binary_size
from jobs.storage.run_lookup import find_runs
from jobs.storage.sweep_folder import SweepFolder

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_BLUE, _PALE = "#0072B2", "#D6ECF9"


def write_figures(
    folder: SweepFolder,
    output: Path | None,
    named: str | None,
    step: int | None,
    say: Callable[[str], None] = lambda _: None,
) -> Iterator[Path]:
    """Draws the measurements of a sweep's finished runs, and yields the path of each file after writing it.

    Args:
        folder: The folder of a submitted sweep.
        output: The folder of the figures; None for `figures` in the sweep's own folder.
        named: The only run to draw, by a label, an id or the start of one; None for all runs.
        step: The step that a timeline shows; None for the step with the median time.
        say: A function for notes: a run whose records are damaged, or lack the step, is left out.

    Raises:
        UserError: There is nothing to draw, the run does not exist, or the folder belongs to another user. Also if no
            run could be drawn.
    """
    finished = _finished_runs(folder, named)
    if output is None and not folder.is_owner():
        raise UserError(f"{str(folder.path)!r} belongs to another user", hint="write the figures elsewhere: -o FOLDER")
    target = output or folder.path / "figures"
    planned = folder.planned_runs()
    _note_scripts([] if named is not None else planned, say)
    variation = Variation(planned)
    links = Counter(run["allocation"] for run in planned if is_link(run))
    drawn = 0
    for run in finished:
        try:
            figure = _draw(folder, run, variation, step)
        except DamagedFile as error:  # a damaged file affects only its run
            if len(finished) == 1:
                raise
            say(f"run {variation.name(run)} is not drawn: {error.message}")
            continue
        except NotInRun as error:
            if len(finished) == 1:
                raise
            say(f"not drawn: {UserError(error.message, hint=error.hint)}")
            continue
        path = target / f"timeline-{run['run_id']}.svg"
        if is_link(run):
            path = target / f"bus-bandwidth-{run['allocation']}.svg"
            if links[run["allocation"]] > 1:
                # Each seed measures the link of its allocation, and each measurement needs its own file.
                path = target / f"bus-bandwidth-{run['run_id']}.svg"
        _save_new(figure, path)
        drawn += 1
        yield path
    if not drawn:
        raise UserError(f"none of the {len(finished)} finished runs can be drawn", hint="the notes say why")


def _note_scripts(planned: Sequence[Mapping[str, Any]], say: Callable[[str], None]) -> None:
    """Says which runs are never drawn."""
    scripts = sum(map(is_command, planned))
    if scripts:
        say(f"not drawn: {count_runs(scripts)} of your own script, whose steps are not timed")


def _draw(folder: SweepFolder, run: Mapping[str, Any], variation: Variation, step: int | None) -> Figure:
    """The figure of a run.

    Raises:
        DamagedFile: Its records cannot be used, or have disappeared.
        NotInRun: It has no such step, or no bucket times.
    """
    run_dir = folder.run(run["run_id"])
    try:
        # From the plan: other users may not read run.json.
        info = from_json(RunInfo, {**run, "versions": {}})
    except ValueError as error:
        raise damaged(folder.plan_file, error) from None
    try:
        if is_link(run):
            file = run_dir / metrics_name(0)
            links = [record for record in read_records(file) if isinstance(record, LinkRecord)]
            if not links:
                raise damaged(file, "it has no link records")
            return bus_bandwidth(links, f"run {variation.name(run)}")
        return draw(read_lanes(run_dir, info, variation.label(run), step))
    except OSError as error:
        raise UnreadableFile(f"{error.filename} cannot be read: {error.strerror}") from None


def _save_new(figure: Figure, path: Path) -> None:
    """Writes a figure into a folder that may not exist yet."""
    try:
        path.parent.mkdir(exist_ok=True)
        save(figure, path)
    except OSError as error:
        message = f"{str(path)!r} cannot be written: {error.strerror}"
        raise UserError(message, hint="write the figures elsewhere: -o FOLDER") from None


def _finished_runs(folder: SweepFolder, named: str | None) -> list[Mapping[str, Any]]:
    """The finished runs that can be drawn, or the one with this name."""
    plan = folder.plan()
    sweep, planned = f"{plan.sweep} on {plan.cluster}", plan.runs
    wanted: Sequence[Mapping[str, Any]] = planned
    if named is not None:
        wanted = find_runs(planned, [named])
    drawable = [run for run in wanted if is_link(run) or has_bucket_times(run)]
    finished = [run for run in drawable if (folder.run(run["run_id"]) / SUMMARY_NAME).exists()]
    if finished:
        return finished
    name = sweep
    if named is not None:
        name = f"run {Variation(planned).name(wanted[0])}"
    if wanted and all(map(is_command, wanted)):
        raise UserError(f"{name} has nothing to draw", hint="the steps of your own script are not timed")
    if drawable:
        raise UserError(f"{name} has nothing to draw yet: no run has finished", hint="sweep status shows the progress")
    raise UserError(
        f"{name} has nothing to draw", hint=f"{DETAILED_TIMING_HINT}, or set measure_link: true next to base"
    )


def bus_bandwidth(records: Sequence[Record], title: str = "") -> Figure:
    """Bus bandwidth over message size, from the all-reduces of a run that did nothing else.

    The line shows the median time. The band reaches from the 95th percentile of the times to the shortest time.

    Args:
        records: The records of rank 0; the link records among them are drawn.
        title: The name of the run.

    Raises:
        UserError: There is no link record, or matplotlib is missing.
    """
    links = sorted((record for record in records if isinstance(record, LinkRecord)), key=lambda link: link.size_bytes)
    if not links:
        raise UserError(
            f"{title or 'the run'} has not measured a link", hint="measure_link: true in the sweep measures it"
        )
    if any(min(link.size_bytes, link.median_ms, link.p95_ms, link.min_ms, link.bus_gb_per_s) <= 0 for link in links):
        raise DamagedFile("its link records have times or sizes that are not positive")
    figure = new_figure(7.0, 4.2)
    axes = figure.add_subplot()
    sizes = [link.size_bytes for link in links]
    median = [link.bus_gb_per_s for link in links]
    # Bandwidth is inversely proportional to time, and bus_gb_per_s belongs to median_ms.
    slow = [link.bus_gb_per_s * link.median_ms / link.p95_ms for link in links]
    fast = [link.bus_gb_per_s * link.median_ms / link.min_ms for link in links]
    axes.fill_between(sizes, slow, fast, color=_PALE, label="95th percentile of the times to the shortest time")
    axes.plot(sizes, median, color=_BLUE, marker="o", markersize=4, label="median time")
    axes.set_xscale("log", base=2)
    axes.set_xticks(sizes, [binary_size(size) for size in sizes], rotation=45, ha="right", rotation_mode="anchor")
    axes.minorticks_off()
    axes.set_ylim(0, 1.12 * max(fast))
    axes.set(xlabel="message size of each rank", ylabel="bus bandwidth in 10⁹ bytes/s")
    axes.set_title(_bandwidth_title(links, title), fontsize=10)
    axes.grid(color="#E5E5E5", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=2, fontsize=8, frameon=False)
    return figure


def _bandwidth_title(links: Sequence[LinkRecord], title: str) -> str:
    """The title of the figure, with the latency of the smallest message and the bandwidth of the largest one."""
    first, last = links[0], links[-1]
    name = ", ".join(filter(None, ("All-reduce", title)))
    return (
        f"{name}\nlatency {first.median_ms:.3g} ms (median of {binary_size(first.size_bytes)}), "
        f"bandwidth {last.bus_gb_per_s:.3g} x 10⁹ bytes/s (of {binary_size(last.size_bytes)})"
    )


def save(figure: Figure, path: Path) -> None:
    """Writes a figure in the format of the file suffix, .svg or .png. The same figure always gives the same bytes."""
    import matplotlib

    metadata = None
    if path.suffix == ".svg":
        metadata = {"Date": None}
    with matplotlib.rc_context({"svg.hashsalt": path.stem}):
        figure.savefig(path, dpi=150, metadata=metadata)
