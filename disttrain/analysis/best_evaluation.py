"""Which evaluation of a run is the best: the one with the lowest loss, of equal ones the first."""

from __future__ import annotations

import math
from collections.abc import Iterable

from disttrain.records.record_types import EvalRecord


def is_better(record: EvalRecord, best: EvalRecord | None) -> bool:
    """Whether an evaluation is better than the best one before it; one whose loss is not finite never is."""
    if record.loss is None or not math.isfinite(record.loss):
        return False
    return best is None or best.loss is None or record.loss < best.loss


def best_evaluation(records: Iterable[EvalRecord]) -> EvalRecord | None:
    """The best of some evaluations; None if none has a finite loss."""
    best: EvalRecord | None = None
    for record in records:
        if is_better(record, best):
            best = record
    return best
