"""The summary of a run, derived from its records by pure functions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from disttrain.records import (
    CheckpointRecord,
    EndRecord,
    EvalRecord,
    Record,
    StartRecord,
    StepRecord,
    Summary,
    median_or_none,
)


@dataclass(frozen=True)
class Sums:
    """What must be added up over the ranks, since each knows only its own examples."""

    tail_loss: float  # over the examples of the last tenth of the steps
    tail_examples: float
    measured_examples: float  # of the steps after the warm-up


def own_sums(records: Sequence[Record], warmup_steps: int) -> Sums:
    """One rank's part of the sums.

    Args:
        records: All records of the rank.
        warmup_steps: First steps, which no measurement counts.
    """
    steps = [record for record in records if isinstance(record, StepRecord)]
    last = steps[-1].step if steps else 0
    tail = [record for record in steps if record.step > last - math.ceil(last / 10) and record.loss is not None]
    return Sums(
        tail_loss=sum((record.loss or 0.0) * record.examples for record in tail),
        tail_examples=sum(record.examples for record in tail),
        measured_examples=sum(record.examples for record in _measured(records, warmup_steps)),
    )


def summarise(
    records: Sequence[Record], sums: Sums, *, hosts: tuple[str, ...], num_nodes: int, warmup_steps: int
) -> Summary:
    """The summary of a finished run.

    Args:
        records: All records of rank 0.
        sums: Over all ranks.
        hosts: Of each rank, by rank.
        num_nodes: Logical nodes.
        warmup_steps: First steps, which no measurement counts.
    """
    starts = [record for record in records if isinstance(record, StartRecord)]
    start = starts[-1]
    end = next(record for record in records if isinstance(record, EndRecord))
    last_eval = next((record for record in reversed(records) if isinstance(record, EvalRecord)), None)
    measured = _measured(records, warmup_steps)
    measured_s = sum(record.step_ms for record in measured) / 1000
    samples_per_s = sums.measured_examples / measured_s if measured else None
    return Summary(
        world_size=start.world_size,
        num_nodes=num_nodes,
        hosts=hosts,
        device_name=start.device_name,
        backend=start.backend,
        comparable=not (start.shared_gpu or start.folded),
        steps=end.steps,
        measured_steps=len(measured),
        train_s=end.train_s,
        samples_per_s=samples_per_s,
        samples_per_s_per_gpu=None if samples_per_s is None else samples_per_s / start.world_size,
        data_ms=median_or_none([record.data_ms for record in measured]),
        forward_ms=median_or_none([record.forward_ms for record in measured]),
        backward_ms=median_or_none([record.backward_ms for record in measured]),
        optimizer_ms=median_or_none([record.optimizer_ms for record in measured]),
        step_ms=median_or_none([record.step_ms for record in measured]),
        train_loss=sums.tail_loss / sums.tail_examples if sums.tail_examples else None,
        eval_loss=last_eval.loss if last_eval else None,
        eval_accuracy=last_eval.accuracy if last_eval else None,
        eval_examples=last_eval.examples if last_eval else None,
        notices=(
            *dict.fromkeys(notice for record in starts for notice in record.notices),
            *_divergence(records),
            *_unsaved(records),
        ),
    )


def _measured(records: Sequence[Record], warmup_steps: int) -> list[StepRecord]:
    """The steps without the first ones of each start: a run that goes on from a checkpoint warms up again."""
    first_step, measured = 1, []
    for record in records:
        if isinstance(record, StartRecord):
            first_step = record.first_step
        elif isinstance(record, StepRecord) and record.step - first_step >= warmup_steps:
            measured.append(record)
    return measured


def _divergence(records: Sequence[Record]) -> tuple[str, ...]:
    for record in records:
        if isinstance(record, StepRecord) and record.examples and record.loss is None:
            return (f"the training loss is not finite from step {record.step} on",)
    return ()


def _unsaved(records: Sequence[Record]) -> tuple[str, ...]:
    failed = [record for record in records if isinstance(record, CheckpointRecord) and record.error is not None]
    if not failed:
        return ()
    return (f"{len(failed)} checkpoints could not be written; the last, of step {failed[-1].step}: {failed[-1].error}",)
