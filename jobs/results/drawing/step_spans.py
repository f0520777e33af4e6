"""The begin and end of the phases and buckets of one step: for the timeline and the trace."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from disttrain.analysis.comm_overlap import Exchange
from disttrain.analysis.measured_steps import MeasuredStep
from disttrain.errors import shorten
from disttrain.records.json_values import damaged
from disttrain.records.record_files import RUN_NAME
from disttrain.records.summary_types import RunInfo

PHASE_NAMES = ("data", "forward", "backward compute", "exposed", "optimizer")


def phase_spans(step: MeasuredStep) -> Iterator[tuple[str, float, float]]:
    """Name, begin and end of each phase, on rank 0's clock in ms."""
    times, begin = step.times, step.start_ms
    exposed = times.exposed_comm_ms or 0.0
    lengths = (times.data_ms, times.forward_ms, times.backward_ms - exposed, exposed, times.optimizer_ms)
    for name, length in zip(PHASE_NAMES, lengths, strict=True):
        yield name, begin, begin + length
        begin += length


def bucket_spans(step: MeasuredStep) -> Iterator[tuple[float, float]]:
    """The times at which each bucket was ready and done, on rank 0's clock in ms; nothing without an exchange."""
    if step.exchange is None:
        return
    for ready, done in zip(step.exchange.ready_ms, step.exchange.done_ms, strict=True):
        yield step.start_ms + ready, step.start_ms + done


def check_exchange(file: Path, number: int, exchange: Exchange) -> None:
    """Checks that every bucket of a step has its times.

    Raises:
        DamagedFile: One has not.
    """
    buckets = len(exchange.bucket_bytes)
    if not buckets == len(exchange.ready_ms) == len(exchange.done_ms) or not buckets:
        raise damaged(file, f"the exchange of step {number} has not one time for each bucket")


def warmup_steps_of(run: RunInfo, run_dir: Path) -> int:
    """The number of first steps of each start that are not measured.

    Raises:
        DamagedFile: The config of the run does not have it.
    """
    warmup_steps = run.train.get("timing_warmup_steps")
    if not isinstance(warmup_steps, int):
        raise damaged(run_dir / RUN_NAME, f"timing_warmup_steps is {shorten(repr(warmup_steps))}")
    return warmup_steps
