"""Finds runs that run and make no steps: from the times and the ends of their ranks' records, or of their metrics."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from disttrain.records.file_tail import read_tails
from disttrain.records.json_values import DamagedFile
from disttrain.records.lifecycle.stage import RUNNING, TRAINING
from disttrain.records.record_files import metrics_name, read_stage
from disttrain.records.script_metrics import STEP, latest_values, metrics_files
from disttrain.records.summary_types import Stage
from jobs.results.live.rank_tail import read_rank_tail
from jobs.schedulers.answers import age_text

# The least silence that counts. Ranks write every 5 s, and the clocks of this host and of the file system may differ.
_LEAST_S = 120.0
# Steps that no rank may take longer than, in median steps: data from a slow disk, a garbage collection.
_STEPS = 10
_FLUSH_S = 5.0  # the interval at which a rank writes its steps
# A script does not say that it evaluates or saves: it may be silent for longer.
_SCRIPT_LEAST_S = 600.0
_LINES = 10  # a script may be silent for this many of its mean intervals between lines
_FEWEST_LINES = 3  # from fewer, the interval is not known
# Without any step yet: the first one compiles the model, or chooses among kernels.
_FIRST_STEP_S = 600.0


@dataclass(frozen=True)
class RankActivity:
    """What a rank has written.

    Attributes:
        rank: The rank.
        step: The last step since its start; 0 if it has written none.
        wrote_s: The time at which its file was last written, in seconds since 1970; None without a file.
    """

    rank: int
    step: int
    wrote_s: float | None


def stall(
    since_s: float, steps: int | None, ranks: Sequence[RankActivity], median_step_ms: float | None, now_s: float
) -> str | None:
    """What to say of a run in the stage training whose ranks have written no step for too long; None otherwise.

    A rank writes the steps that it has finished every 5 s, so the newest file of all ranks shows the last step of the
    run. The run is silent since then, or since training began or resumed: evaluations, checkpoints and the end of a run
    are stages of their own, in which no step is expected. After the last step the final checkpoint may still be
    written. The run may be silent for 2 minutes, or 10 times as long as a median step and one interval of writing if
    that is longer. Before the first step it may be silent for 10 minutes.

    The rank that is named has the lowest last step; of several, it is the one that wrote longest ago. Ranks write at
    different moments, so a difference of less than 5 s of steps does not prove that this rank is the cause.

    Args:
        since_s: The time at which training began or resumed, in seconds since 1970.
        steps: The number of steps in the run; None if it is not known.
        ranks: What each rank has written.
        median_step_ms: The median time of the last steps; None without a step since the start.
        now_s: The time now.

    Example:
        >>> stall(0, 200, [RankActivity(0, 120, 1000), RankActivity(1, 119, 1000)], 50.0, 1240)
        'no step for 4 min (rank 1 last wrote step 119)'
    """
    silent_s = now_s - max([since_s, *(rank.wrote_s for rank in ranks if rank.wrote_s is not None)])
    limit_s = _FIRST_STEP_S
    if median_step_ms is not None:
        limit_s = max(_LEAST_S, _STEPS * median_step_ms / 1000 + _FLUSH_S)
    last = min(ranks, key=lambda rank: (rank.step, rank.wrote_s or 0.0))
    if silent_s < limit_s or (steps is not None and last.step >= steps):
        return None
    wrote = f"rank {last.rank} last wrote step {last.step}"
    if last.step == 0:
        wrote = f"rank {last.rank} has written no step"
    return f"no step for {age_text(silent_s)} ({wrote})"


def read_stall(run_dir: Path, world_size: int, started_s: float | None, now_s: float) -> str | None:
    """The same for a run that runs, from its folder.

    While ranks write, only stage.json is read, and the time of the ranks' files. Only of a silent run the ends of these
    files are read.

    Args:
        run_dir: The run's folder.
        world_size: The number of its ranks.
        started_s: The start of its latest attempt, in seconds since 1970; None if it is not known.
        now_s: The time now.
    """
    stage = _read_stage(run_dir)
    if stage is not None and stage.stage == RUNNING and stage.since_s >= (started_s or 0.0):
        return _script_stall(run_dir, stage.since_s, now_s)
    if stage is None or stage.stage != TRAINING or stage.since_s < (started_s or 0.0):
        return None  # before the start: an earlier attempt was killed, and this one has not begun to write
    times = [stage.since_s, *(wrote_s for rank in range(world_size) if (wrote_s := _wrote_s(run_dir, rank)))]
    if now_s - max(times) < _LEAST_S:
        return None
    tails = [read_rank_tail(run_dir, rank) for rank in range(world_size)]
    medians = [tail.median_step_ms for tail in tails if tail.median_step_ms is not None]
    # The times once more: on NFS, only opening a file shows when it was last written.
    ranks = [
        RankActivity(rank, tail.last.step if tail.last else 0, _wrote_s(run_dir, rank))
        for rank, tail in enumerate(tails)
    ]
    return stall(stage.since_s, stage.steps, ranks, max(medians, default=None), now_s)


def _script_stall(run_dir: Path, since_s: float, now_s: float) -> str | None:
    """What to say of a script that has logged steps, and no line for too long; None otherwise.

    It may be silent for 10 minutes, or 10 times its mean interval between lines if that is longer. A script that logs
    nothing, or no steps, is never found.
    """
    paths = [latest for *_, latest in metrics_files(run_dir).values()]
    wrote_s = max([since_s, *filter(None, map(_modified_s, paths))])
    silent_s = now_s - wrote_s
    if silent_s < _SCRIPT_LEAST_S:
        return None
    steps = ((path, latest_values(path, (STEP,)).get(STEP)) for path in paths)
    path, step = next(((path, step) for path, step in steps if step is not None), (None, None))
    if path is None or step is None:
        return None
    lines = _estimated_lines(path)
    if lines < _FEWEST_LINES or silent_s < _LINES * (wrote_s - since_s) / lines:
        return None
    return f"no metrics for {age_text(silent_s)} (last logged step {step:.0f})"


def _estimated_lines(path: Path) -> float:
    """The number of lines of a file, by its size and by the lines at its end; 0 if it cannot be read."""
    try:
        tail = next(read_tails(path))
        return path.stat().st_size * len(tail) / sum(len(line) + 1 for line in tail)
    except OSError:
        return 0.0


def _read_stage(run_dir: Path) -> Stage | None:
    try:
        return read_stage(run_dir)
    except DamagedFile:
        return None


def _wrote_s(run_dir: Path, rank: int) -> float | None:
    return _modified_s(run_dir / metrics_name(rank))


def _modified_s(path: Path) -> float | None:
    try:
        return path.stat().st_mtime
    except OSError:
        return None
