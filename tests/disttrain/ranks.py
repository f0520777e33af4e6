"""The group of a single rank in the test's process, and a target for ranks in their own processes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

import disttrain.data.image_decoder
from disttrain.config.train_config import TrainConfig
from disttrain.distributed.group import Group
from disttrain.environment.rank_env import RankEnv

ALONE = Group(RankEnv(), torch.device("cpu"), None, ("n1",), False)


def from_files(target: Callable[..., object], config: TrainConfig, env: RankEnv, output_dir: Path) -> None:
    """Runs a rank without a cache of decoded images, so that its workers decode each image when it is needed."""
    disttrain.data.image_decoder.CACHE_LIMIT_BYTES = 0
    target(config, env, output_dir)
