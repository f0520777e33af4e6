"""The steps of a run, and what was sampled meanwhile, on their way to the records, without a wait within a step."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from disttrain.data.batches import RankStep
from disttrain.measure.phase_timer import PhaseTimer, StepTimes
from disttrain.records.record_files import RecordWriter
from disttrain.records.record_types import ExchangeRecord, Record, StepRecord

# Losses stay on the device until records are written, so that the host never waits for a GPU within a step. Each
# writing waits for it once: some ms of 5 s.
FLUSH_EVERY_S = 5.0


@dataclass(frozen=True)
class _Pending:
    """A step whose loss may still be on the way."""

    step: RankStep
    lr: float
    loss: Tensor  # sum over this rank's examples


class StepWriter:
    """Steps on their way to the records, handed over every few seconds.

    Args:
        writer: Of this rank's records.
        timer: Of its steps.
        steps: Of the run.
        say: Takes a line of progress.
        beside: Gives the records of what happened beside the steps since it was last asked.
    """

    def __init__(
        self,
        writer: RecordWriter,
        timer: PhaseTimer,
        steps: int,
        say: Callable[[str], None],
        beside: Callable[[], Sequence[Record]],
    ) -> None:
        self._writer = writer
        self._timer = timer
        self._steps = steps
        self._say = say
        self._beside = beside
        self._pending: list[_Pending] = []
        self._flushed_s = time.monotonic()

    def add(self, step: RankStep, lr: float, loss: Tensor) -> None:
        self._pending.append(_Pending(step, lr, loss))
        if time.monotonic() - self._flushed_s >= FLUSH_EVERY_S:
            self.flush()

    def flush(self) -> None:
        """Writes the records of all steps so far, and says how it goes."""
        self._flushed_s = time.monotonic()
        if not self._pending:
            return
        pending, self._pending = self._pending, []
        sums = torch.stack([entry.loss for entry in pending]).tolist()  # one copy from the device for all of them
        times = self._timer.read()
        records = [_step_record(entry, total, taken) for entry, total, taken in zip(pending, sums, times, strict=True)]
        exchanges = [_exchange_record(entry.step.step, taken) for entry, taken in zip(pending, times, strict=True)]
        self._writer.write([*records, *(each for each in exchanges if each is not None), *self._beside()])
        speed = sum(entry.step.global_examples for entry in pending) / sum(record.step_ms for record in records) * 1000
        loss = next((record.loss for record in reversed(records) if record.loss is not None), math.nan)
        self._say(f"step {records[-1].step}/{self._steps}  loss {loss:.4f}  {speed:.1f} samples/s")


def _step_record(entry: _Pending, total: float, taken: StepTimes) -> StepRecord:
    return StepRecord(
        step=entry.step.step,
        epoch=entry.step.epoch,
        start_s=taken.start_s,
        lr=entry.lr,
        examples=entry.step.examples,
        loss=total / entry.step.examples if entry.step.examples else None,
        data_ms=taken.data_ms,
        forward_ms=taken.forward_ms,
        backward_ms=taken.backward_ms,
        optimizer_ms=taken.optimizer_ms,
        step_ms=taken.step_ms,
        exposed_comm_ms=taken.exposed_comm_ms,
        overlapped_comm_ms=taken.overlapped_comm_ms,
    )


def _exchange_record(step: int, taken: StepTimes) -> ExchangeRecord | None:
    exchange = taken.exchange
    if exchange is None:
        return None
    return ExchangeRecord(
        step=step, bucket_bytes=exchange.bucket_bytes, ready_ms=exchange.ready_ms, done_ms=exchange.done_ms
    )
