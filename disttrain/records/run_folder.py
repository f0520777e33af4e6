"""The folder of a run: the files that an earlier attempt left, and the trained model."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from disttrain.config.run_id import run_id
from disttrain.config.train_config import TrainConfig
from disttrain.environment.rank_env import RankEnv
from disttrain.records import record_files
from disttrain.records.json_values import DamagedFile, read_object
from disttrain.records.lifecycle.stacks import HANG_GLOBS, HANG_NAMES
from disttrain.records.summary_types import RunInfo, Summary
from disttrain.records.versions import versions

MODEL_NAME = "model"


def begin_run(config: TrainConfig, env: RankEnv, output_dir: Path) -> Summary | None:
    """Writes run.json, unless the sweep has written it.

    Returns:
        The summary if this run is already complete, which happens when a node fails at the very end and the job is
        started again; otherwise None.
    """
    info, path = run_info(config, env), output_dir / record_files.RUN_NAME
    written: dict[str, Any] = {}
    with contextlib.suppress(DamagedFile):  # a damaged file is written again
        written = read_object(path) or {}
    by_sweep = bool(written.keys() - {field.name for field in dataclasses.fields(info)})  # a sweep writes more fields
    if env.restart_count > 0 and (by_sweep or written.get("run_id") == info.run_id):
        with contextlib.suppress(DamagedFile):  # the run is then trained again
            summary = record_files.read_summary(output_dir)
            if summary is not None:
                return summary
    if not by_sweep:
        if written.get("run_id") != info.run_id:
            # It belongs to another run: after a restart, this run must not return it as its own.
            (output_dir / record_files.SUMMARY_NAME).unlink(missing_ok=True)
        record_files.write_json(path, dataclasses.asdict(info))
    return None


def remove_results(output_dir: Path, world_size: int) -> None:
    """Removes files of an earlier attempt that this one may not overwrite: results, and records of higher ranks."""
    (output_dir / record_files.SUMMARY_NAME).unlink(missing_ok=True)
    # A kill during a save leaves a temporary folder.
    for folder in (output_dir / MODEL_NAME, *output_dir.glob(f".{MODEL_NAME}.*")):
        shutil.rmtree(folder, ignore_errors=True)
    remove_higher_ranks(output_dir, world_size)


def remove_higher_ranks(output_dir: Path, world_size: int) -> None:
    """Removes the files of ranks that an earlier attempt had and this one does not have."""
    ours = {name(rank) for rank in range(world_size) for name in (record_files.metrics_name, record_files.failure_name)}
    ours |= {name(rank) for rank in range(world_size) for name in HANG_NAMES}
    for pattern in (record_files.METRICS_GLOB, record_files.FAILURE_GLOB, *HANG_GLOBS):
        for path in output_dir.glob(pattern):
            if path.name not in ours:
                path.unlink(missing_ok=True)


def save_model(output_dir: Path, save: Callable[[Path], object], check_owner: Callable[[], None]) -> None:
    """Saves the trained model atomically, with fsync.

    Args:
        output_dir: The run's folder.
        save: A function that writes the model into a folder.
        check_owner: A function that raises if a newer attempt owns the folder.

    Raises:
        OSError: The model could not be written.
    """
    folder = output_dir / MODEL_NAME
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        save(temporary)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    for path in (*temporary.iterdir(), temporary):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)  # the checkpoints are removed after this
        finally:
            os.close(descriptor)
    check_owner()
    shutil.rmtree(folder, ignore_errors=True)
    temporary.rename(folder)


def run_info(config: TrainConfig, env: RankEnv) -> RunInfo:
    """The content of run.json."""
    return RunInfo(
        run_id=run_id(env.allocation, config),
        allocation=env.allocation,
        nodes=env.num_nodes,
        gpus_per_node=env.local_world_size,
        world_size=env.world_size,
        train=dataclasses.asdict(config),
        versions=versions(),
    )
