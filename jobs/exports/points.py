"""Reads what a run has recorded as points of named series: only what is new since the last time."""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from disttrain.records.json_values import damaged
from disttrain.records.record_files import decode, metrics_name
from disttrain.records.record_types import ClockRecord, EvalRecord, Record, StartRecord, StepRecord, TelemetryRecord
from disttrain.records.script_metrics.lines import STEP, metrics_files, number, parse_line, step_of

PHASES = (
    "data_ms", "forward_ms", "backward_ms", "optimizer_ms", "step_ms", "exposed_comm_ms", "overlapped_comm_ms",
)  # fmt: skip


@dataclass(frozen=True)
class Point:
    """Values of some series at one step.

    Attributes:
        step: The step.
        time_s: Its time in seconds since 1970; None if the records do not have it.
        values: The finite values, by the name of the series.
        order: What grows within a series: the step, or the time of a sample; None if the line has neither.
    """

    step: int
    time_s: float | None
    values: Mapping[str, float]
    order: float | None


@dataclass(frozen=True)
class Position:
    """How far a file was read.

    Attributes:
        inode: The file that was read: a run that resumes begins a new one, which repeats the earlier records.
        size_bytes: The number of bytes that were read.
        step: The last step in them; of a script's telemetry, the number of samples.
        clock_s: Seconds since 1970 minus the host's monotonic clock; None before it is known.
        started_s: The time of a start whose monotonic time is not known yet.
    """

    inode: int = 0
    size_bytes: int = 0
    step: int = 0
    clock_s: float | None = None
    started_s: float | None = None


@dataclass
class Progress:
    """What was read of a run: the position in each file, and the last point of each series."""

    positions: dict[str, Position] = field(default_factory=dict)
    latest: dict[str, float] = field(default_factory=dict)


Parser = Callable[[Path, bytes, Position], tuple[Point | None, Position]]


def new_points(run_dir: Path, progress: Progress, *, is_command: bool) -> Iterator[Point]:
    """The points that were recorded since the last time, in the order of the files. It moves the progress forward.

    A step that a later attempt did again is left out: its first values have been given.

    Args:
        run_dir: The folder of the run.
        progress: What was read before.
        is_command: Whether the run is a script of the user.

    Raises:
        DamagedFile: A complete line of the records is no record.
        OSError: A file cannot be read.
    """
    parse: Parser = _parse_record
    if is_command:
        parse = _parse_sample
        for path in next(iter(metrics_files(run_dir).values()), []):
            yield from _new_points(path, progress, _parse_metrics)
    records = run_dir / metrics_name(0)
    if records.exists():
        yield from _new_points(records, progress, parse)


def origin(run_dir: Path) -> str | None:
    """What identifies the first start of a run: a run that resumes repeats its record, a run that is done again not.

    None before the first start is recorded.
    """
    try:
        with (run_dir / metrics_name(0)).open("rb") as file:
            first = file.readline()
    except FileNotFoundError:
        return None
    return hashlib.sha256(first).hexdigest()[:16] if first.endswith(b"\n") else None


def _new_points(path: Path, progress: Progress, parse: Parser) -> Iterator[Point]:
    """The new points of one file."""
    position = progress.positions.get(path.name, Position())
    with path.open("rb") as file:
        found = path.stat()
        if found.st_ino != position.inode or found.st_size < position.size_bytes:
            position = Position(found.st_ino)
        file.seek(position.size_bytes)
        for line in file:
            if not line.endswith(b"\n"):
                break  # it is still being written
            point, position = parse(path, line, position)
            position = dataclasses.replace(position, size_bytes=position.size_bytes + len(line))
            progress.positions[path.name] = position
            if point is not None and (fresh := _without_known(point, progress.latest)).values:
                yield fresh


def _without_known(point: Point, latest: dict[str, float]) -> Point:
    """The point without the series that have it already; what is left is noted in `latest`."""
    if point.order is None:
        return point
    order = point.order
    values = {name: value for name, value in point.values.items() if order > latest.get(name, -math.inf)}
    latest.update(dict.fromkeys(values, order))
    return dataclasses.replace(point, values=values)


def _parse_record(path: Path, line: bytes, position: Position) -> tuple[Point | None, Position]:
    """The point of a record of rank 0."""
    record = _record(path, line)
    if isinstance(record, StartRecord):
        return None, dataclasses.replace(position, clock_s=None, started_s=record.time_s)
    if isinstance(record, ClockRecord):
        return None, _with_clock(position, record.at_s)
    if isinstance(record, StepRecord):
        position = dataclasses.replace(_with_clock(position, record.start_s), step=record.step)
        return Point(record.step, _end_of(record, position), _of_step(record), record.step), position
    if isinstance(record, EvalRecord):
        values = {"loss": record.loss, "accuracy": record.accuracy, "macro_f1": record.macro_f1}
        return Point(record.step, None, _finite("eval", values), record.step), position
    if isinstance(record, TelemetryRecord):
        return _sample(record, position.step), position
    return None, position


def _parse_sample(path: Path, line: bytes, position: Position) -> tuple[Point | None, Position]:
    """The point of a sample of a script's rank 0. Its steps are the script's own, so the samples are numbered."""
    record = _record(path, line)
    if not isinstance(record, TelemetryRecord):
        return None, position
    return _sample(record, position.step), dataclasses.replace(position, step=position.step + 1)


def _parse_metrics(_: Path, line: bytes, position: Position) -> tuple[Point | None, Position]:
    """The point of a line that a script has logged; a damaged line is left out, as in the results."""
    logged = parse_line(line)
    if logged is None:
        return None, position
    step = step_of(logged)
    if step is not None:
        position = dataclasses.replace(position, step=step)
    values = {name: number(value) for name, value in logged.items() if name != STEP}
    return Point(position.step, None, _finite("", values), step), position


def _record(path: Path, line: bytes) -> Record:
    try:
        return decode(line)
    except ValueError as error:
        raise damaged(path, str(error)) from None


def _with_clock(position: Position, monotonic_s: float | None) -> Position:
    """The position with the offset of the clocks: the first monotonic time after a start is that of the start."""
    if position.started_s is None or monotonic_s is None:
        return position
    return dataclasses.replace(position, clock_s=position.started_s - monotonic_s, started_s=None)


def _end_of(record: StepRecord, position: Position) -> float | None:
    if record.start_s is None or position.clock_s is None:
        return None
    return record.start_s + position.clock_s + record.step_ms / 1000


def _of_step(record: StepRecord) -> dict[str, float]:
    speed = record.examples / record.step_ms * 1000 if record.step_ms else None
    train = {"loss": record.loss, "lr": record.lr, "grad_norm": record.grad_norm, "samples_per_s": speed}
    return _finite("train", train) | _finite("phases", {name: getattr(record, name) for name in PHASES})


def _sample(record: TelemetryRecord, step: int) -> Point:
    return Point(step, record.time_s, _finite("telemetry", dataclasses.asdict(record)), record.time_s)


def _finite(group: str, values: Mapping[str, Any]) -> dict[str, float]:
    """The finite numbers among some values, by the names of their series."""
    prefix = f"{group}/" if group else ""
    return {
        prefix + name: float(value)
        for name, value in values.items()
        if isinstance(value, int | float) and math.isfinite(value) and name != "time_s"
    }
