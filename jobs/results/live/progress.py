"""How far a run that runs has come, by its own files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from disttrain.records.json_values import DamagedFile
from disttrain.records.lifecycle.stage import RUNNING
from disttrain.records.record_files import read_stage
from disttrain.records.script_metrics import LOSS, SAMPLES_PER_S, STEP, latest_values, metrics_files
from jobs.results.live.rank_tail import read_rank_tail
from jobs.storage.run_facts import has_summary

FINISHED = "finished"


@dataclass(frozen=True)
class RunProgress:
    """How far a run has come. What is not known is None.

    Attributes:
        stage: What rank 0 does; "finished" if the run has its summary already.
        step: The last step that rank 0 has written, or a script has logged.
        steps: The number of steps in the run; None for a script.
        loss: The loss of that step on rank 0; the last metric `loss` of a script.
        samples_per_s: The speed of the last steps: that of rank 0, times the number of ranks. The last metric
            `samples_per_s` of a script.
        left_s: The time that the remaining steps take at that speed, without evaluations.
    """

    stage: str | None = None
    step: int | None = None
    steps: int | None = None
    loss: float | None = None
    samples_per_s: float | None = None
    left_s: float | None = None

    @property
    def share(self) -> float:
        """The share of its steps that the run has made."""
        if self.stage == FINISHED:
            return 1.0
        return min(1.0, (self.step or 0) / self.steps) if self.steps else 0.0


def read_progress(run_dir: Path, world_size: int) -> RunProgress:
    """How far a run has come, from stage.json and the end of rank 0's records.

    Args:
        run_dir: The run's folder.
        world_size: The number of its ranks.
    """
    try:
        stage = read_stage(run_dir)
    except DamagedFile:
        stage = None
    if stage is None:
        return RunProgress(FINISHED if has_summary(run_dir) else None)
    if stage.stage == RUNNING:
        return _script_progress(run_dir)
    if stage.steps is None:
        return RunProgress(stage.stage)  # the records are of an earlier attempt
    tail = read_rank_tail(run_dir, 0)
    if tail.last is None:
        return RunProgress(stage.stage, steps=stage.steps)
    left_s = None
    if tail.median_step_ms is not None:
        left_s = max(0, stage.steps - tail.last.step) * tail.median_step_ms / 1000
    speed = tail.samples_per_s
    return RunProgress(
        stage.stage,
        tail.last.step,
        stage.steps,
        tail.last.loss,
        None if speed is None else speed * world_size,
        left_s,
    )


def _script_progress(run_dir: Path) -> RunProgress:
    """How far a script has come that runs: by the end of the metrics of the lowest rank that logs any."""
    for *_, latest in metrics_files(run_dir).values():
        found = latest_values(latest, (STEP, LOSS, SAMPLES_PER_S))
        if found:
            step = found.get(STEP)
            return RunProgress(
                RUNNING,
                None if step is None else int(step),
                loss=found.get(LOSS),
                samples_per_s=found.get(SAMPLES_PER_S),
            )
    return RunProgress(RUNNING)
