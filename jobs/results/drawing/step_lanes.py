"""Reads one step of the first ranks of a run: what the timeline draws."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from disttrain.analysis.comm_overlap import Exchange
from disttrain.analysis.measured_steps import MeasuredStep, measured_steps, split_by_start, steps_after_warmup
from disttrain.config.command.command_config import is_command
from disttrain.errors import UserError
from disttrain.records.json_values import damaged, read_object
from disttrain.records.record_files import RUN_NAME, metrics_name, read_records, read_run_info
from disttrain.records.record_types import ClockRecord, ExchangeRecord, Record, StartRecord, StepRecord
from disttrain.records.summary_types import RunInfo
from jobs.planning.labels import run_name
from jobs.results.drawing.step_spans import bucket_spans, check_exchange, phase_spans, warmup_steps_of

DETAILED_TIMING_HINT = "set detailed_timing: true in base, on an allocation of several ranks"
_MOST_LANES = 8


class NotInRun(UserError):
    """A run has no such step, or no bucket times in it; other runs of the sweep may have them."""


@dataclass(frozen=True)
class Lane:
    """One rank in the step that is drawn."""

    rank: int
    host: str
    step: MeasuredStep
    exchange: Exchange

    @property
    def computed_ms(self) -> float:
        """The time at which its last bucket was ready, on rank 0's clock. From then on, communication is exposed."""
        return self.step.start_ms + self.exchange.computed_ms

    def phases(self) -> Iterator[tuple[str, float, float]]:
        """Name, begin and end of each phase, on rank 0's clock in ms."""
        return phase_spans(self.step)

    def buckets(self) -> Iterator[tuple[float, float]]:
        """The times at which each bucket was ready and done, on rank 0's clock in ms."""
        return bucket_spans(self.step)


@dataclass(frozen=True)
class Timeline:
    """One step of the first ranks of a run."""

    run: RunInfo
    label: str
    number: int
    lanes: tuple[Lane, ...]


def read_timeline(run_dir: Path, label: str, step: int | None = None) -> Timeline:
    """The data that `timeline` draws; it has the same arguments and errors."""
    run = read_run_info(run_dir)
    if run is None:
        raise UserError(f"{str(run_dir)!r} has no {RUN_NAME}")
    if is_command(read_object(run_dir / RUN_NAME) or {}):
        raise UserError(f"{str(run_dir)!r} is the run of a command: the steps of its script are not timed")
    return read_lanes(run_dir, run, label, step)


def read_lanes(run_dir: Path, run: RunInfo, label: str, step: int | None = None) -> Timeline:
    """The data that `timeline` draws, of a run whose identity is known.

    Args:
        run_dir: The folder of a run with detailed_timing.
        run: The identity of the run.
        label: The label of the run.
        step: The number of the step, from 1; None for the measured step whose step_ms on rank 0 is the median.

    Raises:
        NotInRun: Rank 0 has no step with the number that was given, or a rank has no bucket times in the step.
        DamagedFile: The records of a rank are damaged, or lack the step.
    """
    files = [run_dir / metrics_name(rank) for rank in range(min(run.world_size, _MOST_LANES))]
    name = run_name(run.run_id, label)
    number = step or median_step(files[0], warmup_steps_of(run, run_dir))
    lanes = tuple(_lane(name, rank, file, number) for rank, file in enumerate(files))
    return Timeline(run, label, number, lanes)


def median_step(file: Path, warmup_steps: int) -> int:
    """The number of the measured step with the median time; without measured steps, of all steps."""
    records = [record for record in read_records(file) if isinstance(record, StartRecord | StepRecord)]
    steps = steps_after_warmup(records, warmup_steps) or steps_after_warmup(records, 0)
    if not steps:
        raise damaged(file, "it has no steps")
    return sorted(steps, key=lambda record: record.step_ms)[(len(steps) - 1) // 2].step


def _lane(name: str, rank: int, file: Path, number: int) -> Lane:
    """The lane of one rank of the run of this name, in the step of this number."""
    needed: list[Record] = []
    numbers: set[int] = set()
    for record in read_records(file):
        if isinstance(record, StepRecord):
            numbers.add(record.step)
        if _is_needed(record, number):
            needed.append(record)
    for start in split_by_start(needed):
        host = next((record.host for record in start if isinstance(record, StartRecord)), "")
        for step in measured_steps(start, 0):
            if step.exchange:
                check_exchange(file, number, step.exchange)
                return Lane(rank, host, step, step.exchange)
    if number in numbers:
        message = f"{file.name} of run {name} has no bucket times in step {number}"
        raise NotInRun(message, hint=DETAILED_TIMING_HINT)
    if rank > 0:  # rank 0 has the step
        raise damaged(file, f"it has no step {number}")
    hint = "it has no steps"
    if numbers:
        hint = f"it has steps {min(numbers)} to {max(numbers)}"
    raise NotInRun(f"run {name} has no step {number}", where="--step", hint=hint)


def _is_needed(record: Record, number: int) -> bool:
    """Whether the lane of a step needs a record. All exchanges of a long run do not fit into a login node's memory."""
    if isinstance(record, StepRecord | ExchangeRecord):
        return record.step == number
    return isinstance(record, StartRecord | ClockRecord)
