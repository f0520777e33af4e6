"""A run's folder, as its ranks find and leave it: what an earlier attempt left there, and the trained model."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from disttrain.config.run_id import run_id
from disttrain.config.train_config import TrainConfig
from disttrain.environment.rank_env import RankEnv
from disttrain.records import record_files
from disttrain.records.summary_types import RunInfo, Summary
from disttrain.records.versions import versions

MODEL_NAME = "model"


def begin_run(config: TrainConfig, env: RankEnv, output_dir: Path) -> Summary | None:
    """Writes down what is run, unless the sweep has.

    Returns:
        The summary of this very run where it had ended when its job was started once more, because its node died just
        then; else None.
    """
    about, path = run_info(config, env), output_dir / record_files.RUN_NAME
    written = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    by_sweep = bool(written.keys() - {field.name for field in dataclasses.fields(about)})  # it has more to say
    summary = output_dir / record_files.SUMMARY_NAME
    if env.restart_count > 0 and summary.exists() and (by_sweep or written.get("run_id") == about.run_id):
        return record_files.from_json(Summary, json.loads(summary.read_text(encoding="utf-8")))
    if not by_sweep:
        if written.get("run_id") != about.run_id:
            summary.unlink(missing_ok=True)  # of another run: a second start of this one must not take it for its own
        record_files.write_json(path, about)
    return None


def remove_results(output_dir: Path, world_size: int) -> None:
    """Removes what an earlier attempt left that this one may not write anew: results, and records of further ranks."""
    (output_dir / record_files.SUMMARY_NAME).unlink(missing_ok=True)
    for folder in (output_dir / MODEL_NAME, *output_dir.glob(f".{MODEL_NAME}.*")):  # of a kill while it was saved
        shutil.rmtree(folder, ignore_errors=True)
    ours = {name(rank) for rank in range(world_size) for name in (record_files.metrics_name, record_files.failure_name)}
    for pattern in (record_files.METRICS_GLOB, record_files.FAILURE_GLOB):
        for path in output_dir.glob(pattern):
            if path.name not in ours:
                path.unlink(missing_ok=True)


def save_model(output_dir: Path, save: Callable[[Path], object], check_owner: Callable[[], None]) -> None:
    """Keeps the trained model, whole and on the disk, or not at all.

    Args:
        output_dir: The run's folder.
        save: Writes the model into a folder.
        check_owner: Raises where a newer attempt has the folder.

    Raises:
        OSError: It could not be written.
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
            os.fsync(descriptor)  # behind it the checkpoints are removed
        finally:
            os.close(descriptor)
    check_owner()
    shutil.rmtree(folder, ignore_errors=True)
    temporary.rename(folder)


def run_info(config: TrainConfig, env: RankEnv) -> RunInfo:
    return RunInfo(
        run_id=run_id(env.allocation, config),
        allocation=env.allocation,
        nodes=env.num_nodes,
        gpus_per_node=env.local_world_size,
        world_size=env.world_size,
        train=dataclasses.asdict(config),
        versions=versions(),
    )
