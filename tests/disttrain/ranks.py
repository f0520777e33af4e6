"""A rank that is alone in the test's process, and what ranks of their own processes are made to do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

import disttrain.data.images
from disttrain.config.train_config import TrainConfig
from disttrain.distributed.group import Group
from disttrain.environment.rank_env import RankEnv

ALONE = Group(RankEnv(), torch.device("cpu"), None, ("here",), False)


def from_files(target: Callable[..., object], config: TrainConfig, env: RankEnv, output_dir: Path) -> None:
    """Runs a rank that decodes its images each time they are asked for, in its workers: what is kept needs none."""
    disttrain.data.images.KEPT_UP_TO_BYTES = 0
    target(config, env, output_dir)
