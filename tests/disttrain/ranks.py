"""The group of a single rank in the test's process, and targets and configs for ranks in their own processes."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import disttrain.data.image_decoder
from disttrain.config.train_config import TrainConfig
from disttrain.data.batches import RankStep
from disttrain.distributed import hang_watch
from disttrain.distributed.group import Group
from disttrain.environment.rank_env import RankEnv
from disttrain.environment.stop_signals import StopSignals
from disttrain.errors import Stopped
from disttrain.run import run
from disttrain.training import loop as loop_module
from disttrain.training.best_model import BestModel
from disttrain.training.loop import TrainingLoop

STEPS = 20  # of a run with `saved_often`
ALONE = Group(RankEnv(), torch.device("cpu"), None, ("n1",), False)


def from_files(target: Callable[..., object], config: TrainConfig, env: RankEnv, output_dir: Path) -> None:
    """Runs a rank without a cache of decoded images, so that its workers decode each image when it is needed."""
    disttrain.data.image_decoder.CACHE_LIMIT_BYTES = 0
    target(config, env, output_dir)


def saved_often(config: TrainConfig) -> TrainConfig:
    """The config with a checkpoint every 3 steps, and with dropout, so that the random generators matter."""
    architecture = {**(config.architecture or {}), "hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}
    return dataclasses.replace(
        config, architecture=architecture, max_steps=STEPS, checkpoint_every=3, per_gpu_batch=2, eval_every=7
    )


def die_in(step: int, rank: int, config: TrainConfig, env: RankEnv, output_dir: Path) -> None:
    """Runs a rank; the rank with this number is killed during this step."""
    add_gradients = TrainingLoop._add_gradients

    def add_or_die(loop: TrainingLoop, rank_step: RankStep, batches: Any) -> Any:
        if rank_step.step == step and env.rank == rank:
            os.kill(os.getpid(), signal.SIGKILL)
        return add_gradients(loop, rank_step, batches)

    TrainingLoop._add_gradients = add_or_die  # type: ignore[method-assign, assignment]
    run(config, env, output_dir)


def stop_in(step: int, rank: int, number: signal.Signals, config: TrainConfig, env: RankEnv, output_dir: Path) -> None:
    """Runs a rank that acts on stop signals; the rank with this number gets the signal during this step.

    Its data workers get it too: Slurm signals all processes of a job.
    """
    add_gradients = TrainingLoop._add_gradients

    def add_and_signal(loop: TrainingLoop, rank_step: RankStep, batches: Any) -> Any:
        if rank_step.step == step and env.rank == rank:
            for worker in multiprocessing.active_children():
                os.kill(worker.pid or 0, number)
            os.kill(os.getpid(), number)
        return add_gradients(loop, rank_step, batches)

    TrainingLoop._add_gradients = add_and_signal  # type: ignore[method-assign, assignment]
    try:
        run(config, env, output_dir, StopSignals())
    except Stopped as stopped:
        (output_dir / f"stopped-{env.rank}").write_text(f"{stopped.step} {stopped.terminated} {stopped.problem}")


def hang_in(
    how: str, step: int, rank: int, stays_s: float, config: TrainConfig, env: RankEnv, output_dir: Path
) -> None:
    """Runs a rank; the rank with this number hangs.

    Args:
        how: ``stop`` stops its process in this step, ``data`` sleeps before its batch, ``evaluate`` and ``best`` sleep
            in an evaluation and after it.
        step: The step.
        rank: The rank.
        stays_s: How long it hangs; a process that is stopped is then killed.
        config: The config.
        env: The rank.
        output_dir: The run's folder.
    """

    def hang_in_step(_: TrainingLoop, number: int) -> None:
        if number == step:
            _hang(how, stays_s)

    hang_watch._OTHERS_S = (3.0, 3.0)
    if env.rank == rank:
        if how in ("stop", "data"):
            _replace(TrainingLoop, "_set_lr", hang_in_step)
        if how == "evaluate":
            _replace(loop_module, "broadcast_buffers", lambda *_: _hang(how, stays_s))
        if how == "best":
            _replace(BestModel, "note", lambda *_: _hang(how, stays_s))
    run(config, env, output_dir)


def suspend_in(step: int, stays_s: float, config: TrainConfig, env: RankEnv, output_dir: Path) -> None:
    """Runs a rank; in this step, its process is stopped for some time."""

    def suspend(_: TrainingLoop, number: int) -> None:
        if number == step:
            subprocess.Popen(["sh", "-c", f"sleep {stays_s}; kill -CONT {os.getpid()}"], start_new_session=True)
            os.kill(os.getpid(), signal.SIGSTOP)

    _replace(TrainingLoop, "_set_lr", suspend)
    run(config, env, output_dir)


def _replace(owner: Any, name: str, before: Callable[..., None]) -> None:
    """Calls a function before the one that an object has under this name."""
    original = getattr(owner, name)

    def replaced(*arguments: Any, **named: Any) -> Any:
        before(*arguments)
        return original(*arguments, **named)

    setattr(owner, name, replaced)


def _hang(how: str, stays_s: float) -> None:
    if how == "stop":
        subprocess.Popen(["sh", "-c", f"sleep {stays_s}; kill -KILL {os.getpid()}"], start_new_session=True)
        os.kill(os.getpid(), signal.SIGSTOP)
    else:
        read_slowly(stays_s)


def read_slowly(stays_s: float) -> None:
    time.sleep(stays_s)
