"""The end of the records of one rank: the last steps that it wrote since its start."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from disttrain.records.file_tail import read_tails
from disttrain.records.json_values import parse_object
from disttrain.records.record_files import metrics_name
from disttrain.records.record_types import StartRecord, StepRecord


@dataclass(frozen=True)
class TailStep:
    """What is used of a step record; None for what it does not have."""

    step: int
    step_ms: float | None = None
    examples: int | None = None
    loss: float | None = None


@dataclass(frozen=True)
class RankTail:
    """The last steps that a rank has written since its latest start, the latest last; none before its first step."""

    steps: tuple[TailStep, ...] = ()

    @property
    def last(self) -> TailStep | None:
        return self.steps[-1] if self.steps else None

    @property
    def median_step_ms(self) -> float | None:
        """The median time of these steps."""
        times = [step.step_ms for step in self.steps if step.step_ms is not None]
        return statistics.median(times) if times else None

    @property
    def samples_per_s(self) -> float | None:
        """The median number of examples of this rank per second in these steps: their first may compile the model."""
        speeds = [step.examples / step.step_ms * 1000 for step in self.steps if step.examples and step.step_ms]
        return statistics.median(speeds) if speeds else None


def read_rank_tail(run_dir: Path, rank: int) -> RankTail:
    """The end of a rank's records. What cannot be read or is damaged is left out: the results name the damage."""
    tail = RankTail()
    try:
        for lines in read_tails(run_dir / metrics_name(rank)):
            tail, has_start = _parse(lines)
            if tail.steps or has_start:
                break
    except OSError:
        return RankTail()
    return tail


def _parse(lines: Sequence[bytes]) -> tuple[RankTail, bool]:
    """The steps since the last start in some lines, and whether the start is among the lines."""
    steps: list[TailStep] = []
    has_start = False
    for line in lines[:-1]:  # what follows the last line end is still being written
        try:
            record = parse_object(line)
        except ValueError:
            continue
        if record.get("kind") == StartRecord.kind:
            steps, has_start = [], True
        elif record.get("kind") == StepRecord.kind and (step := _number(record.get("step"))) is not None:
            examples = _number(record.get("examples"))
            steps.append(
                TailStep(
                    int(step),
                    _number(record.get("step_ms")),
                    None if examples is None else int(examples),
                    _number(record.get("loss"), least=-math.inf),
                )
            )
    return RankTail(tuple(steps)), has_start


def _number(value: Any, least: float = 0.0) -> float | None:
    """A number of a record; None if it is none, or less than the least."""
    if isinstance(value, bool) or not isinstance(value, int | float) or value < least:
        return None
    return value
