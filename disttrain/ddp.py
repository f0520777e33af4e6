"""DDP of a run: the wrapper that exchanges gradients, and when it does not."""

from __future__ import annotations

import inspect
import warnings
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook
from torch.nn.parallel import DistributedDataParallel

from disttrain.config import TrainConfig
from disttrain.dist import Group
from disttrain.errors import UserError

# Most buffers are constants (positions, mean pixels), the same on every rank. Sending rank 0's to the others at each
# forward pass would make them wait for it, in what is measured as the forward pass: see share_buffers.
# torch 2.14 renamed the argument.
_RENAMED = "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters
_NO_BUFFERS: dict[str, Any] = {"forward_sync_buffers" if _RENAMED else "broadcast_buffers": False}


def parallel(model: nn.Module, group: Group, config: TrainConfig) -> nn.Module:
    """The model as it is trained: of one rank itself, since DDP would copy every gradient for nobody.

    Raises:
        UserError: This build of torch cannot exchange gradients in the precision asked for.
    """
    if group.backend is None:
        return model
    # With one example, gradients of embeddings that all positions share have odd strides in dimensions of size 1.
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
    wrapped = DistributedDataParallel(
        model, bucket_cap_mb=config.bucket_cap_mb, gradient_as_bucket_view=True, **_NO_BUFFERS
    )
    if config.grad_compression == "bf16":
        try:
            wrapped.register_comm_hook(None, bf16_compress_hook)
        except TypeError as error:  # of a torch without CUDA
            raise UserError(f"this torch cannot exchange bf16: {error}", where="grad_compression") from error
    return wrapped


def no_exchange(model: nn.Module, more_to_come: bool) -> AbstractContextManager[None]:
    """Gradients add up locally until the last batch of an optimizer step, whose backward exchanges them all."""
    return model.no_sync() if more_to_come and isinstance(model, DistributedDataParallel) else nullcontext()


def share_buffers(model: nn.Module, group: Group) -> None:
    """Gives all ranks rank 0's running statistics, as batch norm keeps them, before they evaluate or are saved.

    Only buffers that are saved with a model can be such; those of BERT and ViT are constants, and are not.
    """
    if group.backend is not None:
        parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
        for name, value in model.state_dict().items():
            if name not in parameters and isinstance(value, Tensor):
                dist.broadcast(value, src=0)
