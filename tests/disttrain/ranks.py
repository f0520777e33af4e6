"""The group of a single rank in the test's process, and targets and configs for ranks in their own processes."""

from __future__ import annotations

import dataclasses
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import disttrain.data.image_decoder
from disttrain.config.train_config import TrainConfig
from disttrain.data.batches import RankStep
from disttrain.distributed.group import Group
from disttrain.environment.rank_env import RankEnv
from disttrain.environment.stop_signals import StopSignals
from disttrain.errors import Stopped
from disttrain.run import run
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
    """Runs a rank that acts on stop signals; the rank with this number gets the signal during this step."""
    add_gradients = TrainingLoop._add_gradients

    def add_and_signal(loop: TrainingLoop, rank_step: RankStep, batches: Any) -> Any:
        if rank_step.step == step and env.rank == rank:
            os.kill(os.getpid(), number)
        return add_gradients(loop, rank_step, batches)

    TrainingLoop._add_gradients = add_and_signal  # type: ignore[method-assign, assignment]
    try:
        run(config, env, output_dir, StopSignals())
    except Stopped as stopped:
        (output_dir / f"stopped-{env.rank}").write_text(f"{stopped.step} {stopped.terminated} {stopped.problem}")
