"""Writes stage.json: what rank 0 of a run does at present. `sweep status` reads it."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from disttrain.environment.rank_env import RankEnv
from disttrain.records.atomic_write import write_text
from disttrain.records.json_values import DamagedFile, to_json
from disttrain.records.record_files import STAGE_NAME, read_stage
from disttrain.records.summary_types import Stage

StageName = Literal[
    "importing", "connecting", "start check", "preparing data", "training", "evaluating", "saving", "measuring",
    "running",
]  # fmt: skip
TRAINING: Literal["training"] = "training"
RUNNING: Literal["running"] = "running"  # the script of a command
_FIRST = "importing"
_SHORT_S = 1.0


def enter_stage(
    output_dir: Path, env: RankEnv, name: StageName, *, steps: int | None = None, first: bool = False
) -> None:
    """Notes that rank 0 begins a stage. Other ranks do nothing.

    The first stage of a process takes the file over. A later stage is only noted if the file is still of this process:
    a newer attempt of the run may have started. A file that cannot be written fails no run.

    Args:
        output_dir: The run's folder.
        env: This rank's place.
        name: The stage.
        steps: The number of steps in the run; None for the number that is noted already.
        first: Whether it is the first stage of the process; `importing` always is.
    """
    if env.rank != 0:
        return
    with contextlib.suppress(OSError):
        noted = _read(output_dir)
        if first or name == _FIRST:
            noted = None
        if noted is None or _is_own(noted, env):
            if steps is None and noted is not None:
                steps = noted.steps
            stage = Stage(
                stage=name,
                since_s=time.time(),
                steps=steps,
                host=socket.gethostname(),
                pid=os.getpid(),
                job_id=env.job_id,
                restart_count=env.restart_count,
            )
            write_text(output_dir / STAGE_NAME, to_json(dataclasses.asdict(stage)) + "\n")


@contextlib.contextmanager
def in_stage(output_dir: Path, env: RankEnv, name: StageName) -> Iterator[None]:
    """Interrupts training with another stage for the block, unless the stage has just changed: a run may evaluate or
    save after every step, and a file that is replaced takes the disk some ms.
    """
    notes = env.rank == 0 and not _has_just_changed(output_dir)
    if notes:
        enter_stage(output_dir, env, name)
    yield
    if notes:
        enter_stage(output_dir, env, TRAINING)


def end_stages(output_dir: Path, env: RankEnv) -> None:
    """Removes the file at the end of rank 0, unless it is of a newer attempt."""
    if env.rank != 0:
        return
    with contextlib.suppress(OSError):
        noted = _read(output_dir)
        if noted is not None and _is_own(noted, env):
            (output_dir / STAGE_NAME).unlink(missing_ok=True)


def _has_just_changed(output_dir: Path) -> bool:
    noted = _read(output_dir)
    return noted is not None and 0 <= time.time() - noted.since_s < _SHORT_S


def _read(output_dir: Path) -> Stage | None:
    try:
        return read_stage(output_dir)
    except DamagedFile:
        return None


def _is_own(stage: Stage, env: RankEnv) -> bool:
    """Whether this process has written it."""
    written_by = (stage.host, stage.pid, stage.job_id, stage.restart_count)
    return written_by == (socket.gethostname(), os.getpid(), env.job_id, env.restart_count)
