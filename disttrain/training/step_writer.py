"""Writes step records, and the records sampled between them, without a wait for the GPU within a step."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from disttrain.analysis.comm_overlap import Exchange
from disttrain.data.batches import RankStep
from disttrain.errors import UserError
from disttrain.measure.phase_timer import PhaseTimer
from disttrain.measure.startup import Startup, startup_record
from disttrain.records.record_files import RecordWriter
from disttrain.records.record_types import ExchangeRecord, Record, StepRecord
from disttrain.records.step_types import StepTimes

# Losses stay on the device until records are written, so that the host never waits for a GPU within a step. Each flush
# waits once: some ms every 5 s.
FLUSH_EVERY_S = 5.0
# The most steps in a row, skipped by fp16, whose loss is not finite: after them the scale is below 1. At the end of a
# run fewer are too many, because nothing shows any more that it would recover.
_MOST_SKIPPED, _MOST_AT_END = 17, 3


@dataclass(frozen=True)
class _Pending:
    """A step whose loss the GPU may still compute."""

    step: RankStep
    lr: float
    loss: Tensor  # the sum over this rank's examples, on the device
    grad_norm: Tensor | None
    skipped: Tensor | None
    profiled: bool


class StepWriter:
    """Collects steps and writes their records every `FLUSH_EVERY_S` seconds.

    Args:
        writer: The writer of this rank's records.
        timer: The timer of this rank's steps.
        steps: The number of steps in the run.
        startup: The start of this process.
        say: Prints a progress line.
        other_records: Returns the records, other than those of steps, since its last call.
        stop_on_non_finite: Whether a loss that is not finite ends the run.

    Attributes:
        read_step: The last step whose loss was read from the device, so that it has ended there; 0 before the first.
    """

    def __init__(
        self,
        writer: RecordWriter,
        timer: PhaseTimer,
        steps: int,
        startup: Startup,
        say: Callable[[str], None],
        other_records: Callable[[], Sequence[Record]],
        *,
        stop_on_non_finite: bool = True,
    ) -> None:
        self._writer = writer
        self._timer = timer
        self._steps = steps
        self._startup: Startup | None = startup  # None once its record is written
        self._say = say
        self._other_records = other_records
        self._stop_on_non_finite = stop_on_non_finite
        self._non_finite = 0  # steps in a row whose loss is not finite
        self._pending: list[_Pending] = []
        self._flushed_s = time.monotonic()
        self.read_step = 0

    def add(
        self,
        step: RankStep,
        lr: float,
        loss: Tensor,
        grad_norm: Tensor | None = None,
        skipped: Tensor | None = None,
        *,
        profiled: bool = False,
    ) -> None:
        """Adds a finished step, and flushes if the last flush was `FLUSH_EVERY_S` seconds ago."""
        self._pending.append(_Pending(step, lr, loss, grad_norm, skipped, profiled))
        if time.monotonic() - self._flushed_s >= FLUSH_EVERY_S:
            self.flush()

    def flush(self) -> None:
        """Writes the records of all steps so far, and prints a progress line."""
        self._flushed_s = time.monotonic()
        if not self._pending:
            return
        pending, self._pending = self._pending, []
        # One copy from the device for all steps.
        values = torch.stack([_values(entry) for entry in pending]).tolist()
        self.read_step = pending[-1].step.step
        measured = self._timer.read()
        steps = [
            _step_record(entry, value, step.times) for entry, value, step in zip(pending, values, measured, strict=True)
        ]
        exchanges = [_exchange_record(record.step, step.exchange) for record, step in zip(steps, measured, strict=True)]
        first: list[Record] = []
        if self._startup is not None:
            first = [startup_record(self._startup, steps[0])]
            self._startup = None
        self._writer.write([*first, *steps, *filter(None, exchanges), *self._other_records()])
        speed = sum(entry.step.global_examples for entry in pending) / sum(record.step_ms for record in steps) * 1000
        # A rank without examples in a step has no loss of it.
        losses = [f"loss {record.loss:.4f}" for record in steps if record.loss is not None]
        self._say("  ".join([f"step {steps[-1].step}/{self._steps}", *losses[-1:], f"{speed:.1f} samples/s"]))
        if self._stop_on_non_finite:
            for record in steps:
                self._check_finite(record)

    def end(self) -> None:
        """Writes the records of the last steps, and checks that the run did not end in steps without a finite loss."""
        self.flush()
        if self._stop_on_non_finite and self._non_finite >= min(_MOST_AT_END, self._steps):
            raise _not_finite(f"the last {self._non_finite} steps have no finite loss")

    def _check_finite(self, record: StepRecord) -> None:
        """Checks a loss when its record is written: a check in each step would wait for the GPU.

        A step that fp16 skips may have a loss that is not finite. Its scale is halved, and after some such steps it is
        no longer the cause.

        Raises:
            UserError: The loss is not finite.
        """
        if record.loss is None:
            return
        if math.isfinite(record.loss):
            self._non_finite = 0
            return
        self._non_finite += 1
        if not record.skipped:
            raise _not_finite(f"the loss of step {record.step} is {record.loss}")
        if self._non_finite > _MOST_SKIPPED:
            raise _not_finite(f"the last {self._non_finite} steps up to {record.step} have no finite loss")


def _not_finite(message: str) -> UserError:
    return UserError(message, hint="a smaller lr or a longer warm-up may help; stop_on_non_finite: false continues")


def _values(entry: _Pending) -> Tensor:
    """What the GPU computes of a step: loss, norm of the gradients and whether it was skipped; NaN where it is None."""
    absent = torch.full_like(entry.loss, math.nan)
    parts = (entry.loss, entry.grad_norm, entry.skipped)
    return torch.stack([absent if part is None else part.to(absent.dtype).reshape(()) for part in parts])


def _step_record(entry: _Pending, values: Sequence[float], times: StepTimes) -> StepRecord:
    """The record of a step, with the values that `_values` gives."""
    loss_sum, norm, skipped = values
    loss: float | None = None
    if entry.step.examples:
        loss = loss_sum / entry.step.examples
    return StepRecord(
        step=entry.step.step,
        epoch=entry.step.epoch,
        loss=loss,
        lr=entry.lr,
        grad_norm=None if entry.grad_norm is None else norm,
        skipped=None if entry.skipped is None else bool(skipped),
        examples=entry.step.examples,
        profiled=True if entry.profiled else None,
        **vars(times),
    )


def _exchange_record(step: int, exchange: Exchange | None) -> ExchangeRecord | None:
    if exchange is None:
        return None
    return ExchangeRecord(
        step=step, bucket_bytes=exchange.bucket_bytes, ready_ms=exchange.ready_ms, done_ms=exchange.done_ms
    )
