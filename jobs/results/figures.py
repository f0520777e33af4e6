"""The figures of a sweep, and their files: a step's timeline of each run, and the bus bandwidth of each link."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from disttrain.config.train_config import LINK
from disttrain.errors import UserError
from disttrain.records.record_files import SUMMARY_NAME, metrics_name, read_records
from disttrain.records.record_types import LinkRecord, Record
from jobs.results.timeline import NOT_WATCHED, binary_size, new_figure, timeline
from jobs.storage.sweep_folder import SweepFolder

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_BLUE, _PALE = "#0072B2", "#D6ECF9"


def write_figures(folder: SweepFolder, output: Path | None, run_id: str | None, step: int | None) -> Iterator[Path]:
    """Draws what the finished runs of a sweep have measured, and gives each file as it is written.

    Args:
        folder: Of a sweep that was submitted.
        output: Folder of the figures; None: `figures` in the sweep's own.
        run_id: Of one run; None: all.
        step: That a timeline shows; None: the one that takes as long as the median.

    Raises:
        UserError: There is nothing to draw, no such run or step, or the folder is another user's.
    """
    of_sweep = f"{folder.sweep_name} on {folder.cluster_name}"
    planned = folder.planned_runs()
    links = Counter(run["allocation"] for run in planned if _is_link(run))
    if run_id is not None and run_id not in {run["run_id"] for run in planned}:
        raise UserError(f"there is no run {run_id!r} in {of_sweep}", where="--run", hint="sweep status names them")
    chosen = [run for run in planned if run_id in (None, run["run_id"]) and (_is_link(run) or _is_watched(run))]
    finished = [run for run in chosen if (folder.run(run["run_id"]) / SUMMARY_NAME).exists()]
    if not finished:
        what = f"run {run_id}" if run_id else of_sweep
        if chosen:
            raise UserError(
                f"{what} has nothing to draw yet: no run has finished", hint="sweep status shows how it goes"
            )
        raise UserError(f"{what} has nothing to draw", hint=f"{NOT_WATCHED}, or measure_link: true beside base")
    if output is None and not folder.is_owner():
        raise UserError(f"{str(folder.path)!r} is another user's", hint="write the figures elsewhere: -o FOLDER")
    target = output or folder.path / "figures"
    for run in finished:
        run_dir, name = folder.run(run["run_id"]), run["run_id"]
        if _is_link(run):
            figure = bus_bandwidth(tuple(read_records(run_dir / metrics_name(0))), f"run {name} on {run['allocation']}")
            # Seeds of one allocation are links of their own, and one must not take the other's place.
            path = target / f"bus-bandwidth-{run['allocation'] if links[run['allocation']] == 1 else name}.svg"
        else:
            figure, path = timeline(run_dir, step), target / f"timeline-{name}.svg"
        target.mkdir(exist_ok=True)
        save(figure, path)
        yield path


def _is_link(run: dict[str, Any]) -> bool:
    return bool(run["train"]["model"] == LINK)


def _is_watched(run: dict[str, Any]) -> bool:
    return bool(run["train"].get("detailed_timing")) and run["world_size"] > 1


def bus_bandwidth(records: Sequence[Record], title: str = "") -> Figure:
    """Bus bandwidth over message size, of the all-reduces that a run made with nothing else to do.

    The line is that of the median time, the band from the 95th percentile of the times to the shortest one.

    Args:
        records: Of rank 0; its link records are drawn.
        title: Names the run.

    Raises:
        UserError: There is no link record, or matplotlib is missing.
    """
    links = sorted((record for record in records if isinstance(record, LinkRecord)), key=lambda link: link.size_bytes)
    if not links:
        raise UserError(
            f"{title or 'the run'} has measured no link", hint="measure_link: true in the sweep measures it"
        )
    figure = new_figure(7.0, 4.2)
    axes = figure.add_subplot()
    sizes = [link.size_bytes for link in links]
    median = [link.bus_gb_per_s for link in links]
    # A bandwidth is as many times that of the median as its time is shorter.
    slow, fast = ([link.bus_gb_per_s * link.median_ms / of(link) for link in links] for of in (_p95, _shortest))
    axes.fill_between(sizes, slow, fast, color=_PALE, label="from the 95th percentile of the times to the shortest")
    axes.plot(sizes, median, color=_BLUE, marker="o", markersize=4, label="median time")
    axes.set_xscale("log", base=2)
    axes.set_xticks(sizes, [binary_size(size) for size in sizes], rotation=45, ha="right", rotation_mode="anchor")
    axes.minorticks_off()
    axes.set_ylim(0, 1.12 * max(fast))
    axes.set(xlabel="message size, that each rank gives", ylabel="bus bandwidth in 10⁹ bytes/s")
    first, last = links[0], links[-1]
    told = (
        f"latency {first.median_ms:.3g} ms (median of {binary_size(first.size_bytes)}), "
        f"bandwidth {last.bus_gb_per_s:.3g} x 10⁹ bytes/s (of {binary_size(last.size_bytes)})"
    )
    axes.set_title(f"All-reduce, {title}\n{told}" if title else f"All-reduce\n{told}", fontsize=10)
    axes.grid(color="#E5E5E5", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=2, fontsize=8, frameon=False)
    return figure


def _p95(link: LinkRecord) -> float:
    return link.p95_ms


def _shortest(link: LinkRecord) -> float:
    return link.min_ms


def save(figure: Figure, path: Path) -> None:
    """Writes a figure as its file's ending says, .svg or .png; the same figure is the same bytes each time."""
    import matplotlib

    metadata = {"Date": None} if path.suffix == ".svg" else None
    with matplotlib.rc_context({"svg.hashsalt": path.stem}):
        figure.savefig(path, dpi=150, metadata=metadata)
