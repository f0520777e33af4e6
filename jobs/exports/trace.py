"""Writes the trace of a run for Perfetto: the phases and buckets of every rank, or the metrics of a script."""

from __future__ import annotations

import json
import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from disttrain.analysis.comm_overlap import Exchange
from disttrain.analysis.measured_steps import MeasuredStep, offset_at
from disttrain.errors import UserError
from disttrain.records.atomic_write import atomic_write
from disttrain.records.json_values import damaged
from disttrain.records.record_files import metrics_name, read_records
from disttrain.records.record_types import ClockRecord, ExchangeRecord, StartRecord, StepRecord
from disttrain.records.script_metrics import STEP, metrics_files
from disttrain.records.script_metrics.lines import number, parse_line, step_of
from disttrain.records.summary_types import RunInfo
from jobs.results.drawing.step_lanes import median_step
from jobs.results.drawing.step_spans import bucket_spans, check_exchange, phase_spans, warmup_steps_of

_DEFAULT_STEPS = 20
_TRACKS = 100_000  # ids of threads for each process: viewers need ids that no two processes share
_STEP_US = 1000  # of a script, whose metrics have no time: one ms for each step

Event = dict[str, Any]


@dataclass(frozen=True)
class _Outline:
    """The records of a rank without its steps."""

    host: str  # of the first start
    clocks: list[list[ClockRecord]]  # of each start: one before and one after its steps
    has_exchanges: bool


@dataclass(frozen=True)
class StepRange:
    """The steps of a trace, both ends included; the last is None if there is no end."""

    first: int
    last: int | None

    def __contains__(self, step: int) -> bool:
        return self.first <= step and (self.last is None or step <= self.last)


ALL_STEPS = StepRange(0, None)


def parse_steps(text: str) -> StepRange:
    """The steps that a text names.

    Raises:
        UserError: It names none.

    Example:
        >>> parse_steps("10-29"), parse_steps("7"), parse_steps("all") == ALL_STEPS
        (StepRange(first=10, last=29), StepRange(first=7, last=7), True)
    """
    if text == "all":
        return ALL_STEPS
    first, _, last = text.partition("-")
    ends = [first, last or first]
    if not all(end.isascii() and end.isdigit() for end in ends) or text.endswith("-") or int(ends[0]) > int(ends[1]):
        raise UserError(f"{text!r} is no range of steps", where="--steps", hint="write 10-29, 10 or all")
    return StepRange(int(ends[0]), int(ends[1]))


def write_trace(run_dir: Path, run: RunInfo, name: str, output: Path, steps: StepRange | None) -> int:
    """Writes the trace of a run that has timed its own steps, one event at a time.

    Args:
        run_dir: The folder of the run.
        run: The identity of the run.
        name: The name of the run in messages.
        output: The file.
        steps: The steps; None for the 20 steps around the measured step whose step_ms on rank 0 is the median.

    Returns:
        The number of steps of all ranks in the file.

    Raises:
        UserError: The run has no such step.
        DamagedFile: The records of a rank are damaged.
        OSError: A file cannot be read or written.
    """
    files = [run_dir / metrics_name(rank) for rank in range(run.world_size)]
    if steps is None:
        first = max(1, median_step(files[0], warmup_steps_of(run, run_dir)) - _DEFAULT_STEPS // 2 + 1)
        steps = StepRange(first, first + _DEFAULT_STEPS - 1)
    events = (event for rank, file in enumerate(files) for event in _rank_events(rank, file, steps))
    hint = "--steps all writes every step"
    return _write(output, events, UserError(f"run {name} has none of these steps", where="--steps", hint=hint))


def write_script_trace(run_dir: Path, name: str, output: Path, steps: StepRange | None) -> int:
    """Writes the metrics of a script as counters; its arguments, result and errors are those of `write_trace`.

    The lines of a script have no time, so a step is one ms long. Values without a step are left out.
    """
    events = _script_events(run_dir, steps or ALL_STEPS)
    hint = "log_metrics(step=1, loss=0.3) logs one"
    return _write(output, events, UserError(f"run {name} has logged no metrics with such a step", hint=hint))


def _write(output: Path, events: Iterator[Event], nothing: UserError) -> int:
    """Writes the events, and counts those that are the first of a step. Raises an error if there are none."""
    with atomic_write(output, sync=False) as file:
        file.write(b'{"displayTimeUnit": "ms", "traceEvents": [')
        separator, count = b"\n", 0
        for event in events:
            file.write(separator + json.dumps(event, allow_nan=False).encode())
            separator = b",\n"
            count += event["ph"] == "C" or event["name"] == "data"
        if not count:
            raise nothing
        file.write(b"\n]}\n")
    return count


def _rank_events(rank: int, file: Path, steps: StepRange) -> Iterator[Event]:
    """The events of one rank: the names of its tracks, then its steps."""
    process, named, outline = rank + 1, 0, _outline(file)  # viewers reserve process 0
    yield _name("process", process, 0, f"rank {rank} on {outline.host}")
    yield {
        "ph": "M",
        "name": "process_sort_index",
        "pid": process,
        "tid": process * _TRACKS,
        "args": {"sort_index": rank},
    }
    yield _name("thread", process, 0, "phases")
    for step_number, step in _read_steps(file, outline, steps):
        while step.exchange is not None and named < len(step.exchange.bucket_bytes):
            named += 1
            yield _name("thread", process, named, f"bucket {named}")
        yield from _step_events(process, step_number, step)


def _step_events(process: int, step_number: int, step: MeasuredStep) -> Iterator[Event]:
    """The phases of a step, then its buckets."""
    for phase, begin, end in phase_spans(step):
        if phase == "exposed" and end <= begin:
            continue  # one rank, or not measured
        name = "backward" if phase == "backward compute" and step.times.exposed_comm_ms is None else phase
        yield _span(process, 0, name, begin, end, {"step": step_number})
    for bucket, (begin, end) in enumerate(bucket_spans(step)):
        size_bytes = step.exchange.bucket_bytes[bucket] if step.exchange else None
        arguments = {"step": step_number, "size_bytes": size_bytes}
        yield _span(process, bucket + 1, f"bucket {bucket + 1}", begin, end, arguments)


def _read_steps(file: Path, outline: _Outline, steps: StepRange) -> Iterator[tuple[int, MeasuredStep]]:
    """The steps of a rank with their exchange, on rank 0's clock.

    A rank writes the steps of some seconds, then their exchanges. Only these steps wait in memory.
    """
    start = -1
    waiting: deque[StepRecord] = deque()
    for record in read_records(file):
        if isinstance(record, StartRecord):
            yield from _without_exchange(waiting, outline.clocks[start])
            start += 1
        if isinstance(record, StepRecord) and record.step in steps:
            if record.start_s is None:
                raise damaged(file, f"step {record.step} has no start_s, as in records of an early release")
            waiting.append(record)
        if not outline.has_exchanges:
            yield from _without_exchange(waiting, outline.clocks[start])
        if isinstance(record, ExchangeRecord):
            yield from _without_exchange(waiting, outline.clocks[start], record.step)
            if waiting and waiting[0].step == record.step:
                exchange = Exchange(record.bucket_bytes, record.ready_ms, record.done_ms)
                check_exchange(file, record.step, exchange)
                yield record.step, _measured(waiting.popleft(), exchange, outline.clocks[start])
    yield from _without_exchange(waiting, outline.clocks[start])


def _without_exchange(
    waiting: deque[StepRecord], clocks: list[ClockRecord], before: int | None = None
) -> Iterator[tuple[int, MeasuredStep]]:
    """Removes the steps before a number, or all, which have no exchange."""
    while waiting and (before is None or waiting[0].step < before):
        step = waiting.popleft()
        yield step.step, _measured(step, None, clocks)


def _measured(step: StepRecord, exchange: Exchange | None, clocks: list[ClockRecord]) -> MeasuredStep:
    return MeasuredStep(step, exchange, offset_at(step.start_s or 0.0, clocks))


def _outline(file: Path) -> _Outline:
    """What the records of a rank have before and after its steps."""
    host: str | None = None
    clocks: list[list[ClockRecord]] = []
    has_exchanges = False
    for record in read_records(file):
        if isinstance(record, StartRecord):
            host = host or record.host
            clocks.append([])
        if isinstance(record, ClockRecord) and clocks:
            clocks[-1].append(record)
        has_exchanges = has_exchanges or isinstance(record, ExchangeRecord)
    if host is None:
        raise damaged(file, "it has no start record")
    return _Outline(host, clocks, has_exchanges)


def _script_events(run_dir: Path, steps: StepRange) -> Iterator[Event]:
    """A process for each rank and attempt, in it a counter for each metric."""
    process = 0
    for rank, paths in metrics_files(run_dir).items():
        for path in paths:
            process += 1
            yield _name(
                "process", process, 0, f"rank {rank}, {path.stem.partition('-')[2].replace('attempt', 'attempt ')}"
            )
            yield from _counters(process, path, steps)


def _counters(process: int, path: Path, steps: StepRange) -> Iterator[Event]:
    with path.open("rb") as file:
        for values in filter(None, map(parse_line, file)):
            step = step_of(values)
            if step is None or step not in steps:
                continue
            for name, given in values.items():
                value = number(given)
                if name != STEP and value is not None and math.isfinite(value):
                    place = {"pid": process, "tid": process * _TRACKS, "ts": step * _STEP_US}
                    yield {"ph": "C", "name": name, **place, "args": {"value": value}}


def _name(of: str, process: int, track: int, text: str) -> Event:
    """The event that names a process or one of its tracks."""
    return {"ph": "M", "name": f"{of}_name", "pid": process, "tid": process * _TRACKS + track, "args": {"name": text}}


def _span(process: int, track: int, name: str, begin_ms: float, end_ms: float, arguments: dict[str, Any]) -> Event:
    """A span on a track. A negative length, which only rounding makes, is 0."""
    place = {"pid": process, "tid": process * _TRACKS + track}
    times = {"ts": round(begin_ms * 1000, 3), "dur": round(max(0.0, end_ms - begin_ms) * 1000, 3)}
    return {"ph": "X", "name": name, **place, **times, "args": arguments}
