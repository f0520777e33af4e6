"""One rank from its environment to the run's summary: what RankTask, bert.py and vit.py call."""

from __future__ import annotations

import contextlib
import gc
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from disttrain.config.flags import parse_flags
from disttrain.config.run_id import run_id
from disttrain.config.train_config import LINK, TrainConfig, absolute_paths
from disttrain.distributed.process_exit import exit_soon, leave_without_teardown
from disttrain.environment.rank_env import RankEnv, choose_threads
from disttrain.errors import BrokenNode, NewerAttempt, UserError
from disttrain.records import record_files
from disttrain.records.run_folder import begin_run
from disttrain.records.summary_types import Summary

# torch, and every module that needs it, is imported inside `_run`: --help and a wrong flag load none of it.
if TYPE_CHECKING:
    from disttrain.distributed.group import Group
    from disttrain.measure.start_check import StartCheck


def main(model: str, arguments: list[str]) -> None:
    """The command ``bert.py`` or ``vit.py``: one rank of a run; exits with 2 on a mistake of the user's.

    Args:
        model: The family.
        arguments: The flags.
    """
    try:
        config = absolute_paths(parse_flags(model, arguments), os.getcwd())
        env = RankEnv.from_environ(os.environ)
        output_dir = Path(config.output_dir or default_output_dir(config, env, os.environ))
        run(config, env, output_dir)
    except (UserError, BrokenNode, NewerAttempt) as error:
        # In one write, the line's end with it: ranks share this stream, and print would let another's line in between.
        sys.stderr.write(f"error: {error}\n")
        sys.exit(2 if isinstance(error, UserError) else 1)
    if env.rank == 0:
        print(f"results: {output_dir}")


def default_output_dir(config: TrainConfig, env: RankEnv, environ: Mapping[str, str]) -> Path:
    """Where a run that no sweep started puts its files: ``<root>/torchrun/<run_id>``."""
    return Path(environ.get("SWEEP_ROOT") or "runs") / "torchrun" / run_id(env.allocation, config)


def run(config: TrainConfig, env: RankEnv, output_dir: Path) -> Summary:
    """Does one rank's part of a run, and leaves its records, and rank 0's summary, in `output_dir`.

    Args:
        config: As asked for.
        env: This rank's place.
        output_dir: The run's folder, on a file system that all ranks see.

    Raises:
        UserError: The config or the data are wrong, in one line.
        Exception: Whatever else went wrong; either way the rank has written its failure record.
    """
    output_dir = output_dir.absolute()
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"output_dir {str(output_dir)!r} cannot be made: {error.strerror}") from error
    # What an earlier attempt left must not be taken for this one's.
    (output_dir / record_files.failure_name(env.rank)).unlink(missing_ok=True)
    # What is imported and built on the way to the first step stays: collecting garbage meanwhile looks through it again
    # and again and finds none, for 17 % of that time.
    gc.disable()
    try:
        summary = _run(config.resolved(), env, output_dir)
        if env.world_size > 1:
            leave_without_teardown()
        return summary
    except Exception as error:
        # One that has been overtaken leaves no word: the folder is the newer attempt's.
        if not isinstance(error, NewerAttempt):
            record_files.write_failure(output_dir, env.rank, error)
        if env.world_size > 1:
            exit_soon()
        raise
    finally:
        gc.enable()


def _run(config: TrainConfig, env: RankEnv, output_dir: Path) -> Summary:
    if config.setup is not None:
        env.check_setup(config.setup)
    config.check_world_size(env.world_size)
    import torch

    from disttrain.distributed.device import compute_deterministically
    from disttrain.distributed.group import process_group
    from disttrain.measure.start_check import check_start

    torch.set_num_threads(choose_threads(env, os.environ, len(os.sched_getaffinity(0))))
    if config.deterministic:
        compute_deterministically()
    with process_group(env, config.device) as group:
        finished = group.broadcast_from_main(begin_run(config, env, output_dir) if group.is_main else None)
        if finished is not None:
            return finished
        checked = check_start(config, group)  # before an hour is spent on data, with ranks that cannot train
        if config.model == LINK:
            from disttrain.link_run import run_link

            return run_link(group, output_dir, checked.records, checked.notices)
        return _train(config, group, output_dir, checked)


def _train(config: TrainConfig, group: Group, output_dir: Path, checked: StartCheck) -> Summary:
    from disttrain.training_run import open_checkpoints, prepare, train_and_summarise

    prepared = prepare(config, group, output_dir)
    checkpoints = open_checkpoints(config, group, output_dir)
    try:
        return train_and_summarise(config, group, output_dir, prepared, checked, checkpoints)
    except Exception as error:
        # The ranks of an attempt that was overtaken lose each other; their errors would mislead the newer attempt.
        overtaken = False
        with contextlib.suppress(OSError):  # the first error is the one to report
            overtaken = checkpoints is not None and checkpoints.is_overtaken()
        if overtaken:
            raise NewerAttempt("a newer attempt of this run has started") from error
        raise
