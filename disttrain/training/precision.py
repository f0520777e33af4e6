"""The precision of the training: that of forward passes, and the scale of losses that fp16 needs."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from disttrain.config.train_config import TrainConfig

_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


def autocast(config: TrainConfig, device: torch.device) -> AbstractContextManager[None]:
    """The precision of forward passes: bf16 or fp16 autocast, or none."""
    if config.precision in _AUTOCAST:
        return torch.autocast(device.type, _AUTOCAST[config.precision])
    return nullcontext()


class LossScaler:
    """Scales losses, so that small gradients in fp16 do not become zero (Micikevicius et al. 2018).

    A step whose gradients are not finite is skipped, and the scale is halved. Nothing of this waits for a GPU. In other
    precisions the losses stay as they are.

    Args:
        precision: The precision of the run.
        device: The device of the model.
    """

    def __init__(self, precision: str, device: torch.device) -> None:
        self._scaler: Any = None
        if precision == "fp16":
            self._scaler = torch.amp.GradScaler(device.type)

    def scaled(self, loss: Tensor) -> Tensor:
        """The loss whose gradients are computed."""
        if self._scaler is None:
            return loss
        scaled: Tensor = self._scaler.scale(loss)
        return scaled

    def unscale(self, optimizer: torch.optim.Optimizer) -> None:
        """Makes the gradients those of the loss itself."""
        if self._scaler is not None:
            self._scaler.unscale_(optimizer)

    def step(self, optimizer: torch.optim.Optimizer) -> Tensor | None:
        """Does an optimizer step; whether it was skipped, on the device, or None in other precisions."""
        if self._scaler is None:
            optimizer.step()
            return None
        self._scaler.step(optimizer)
        # No public method tells it without a wait for the GPU.
        found = self._scaler._per_optimizer_states[id(optimizer)]["found_inf_per_device"]
        skipped = torch.stack(list(found.values())).sum() > 0
        self._scaler.update()
        return skipped

    def state(self) -> dict[str, Any]:
        """What a checkpoint needs; it waits for the GPU."""
        return {} if self._scaler is None else dict(self._scaler.state_dict())

    def load(self, state: Mapping[str, Any]) -> None:
        """Restores the scale of a checkpoint."""
        if self._scaler is not None and state:
            self._scaler.load_state_dict(dict(state))
