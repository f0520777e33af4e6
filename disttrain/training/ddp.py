"""DDP of a run: the wrapper that exchanges gradients, and when it does not."""

from __future__ import annotations

import functools
import inspect
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import GradBucket
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook, bf16_compress_hook
from torch.futures import Future
from torch.nn.parallel import DistributedDataParallel

from disttrain.config.train_config import TrainConfig
from disttrain.distributed.group import Group
from disttrain.errors import UserError
from disttrain.measure.phase_timer import PhaseTimer

# Most buffers are constants (positions, mean pixels), the same on every rank. Sending rank 0's to the others at each
# forward pass would make them wait for it, in what is measured as the forward pass: see share_buffers.
# torch 2.14 renamed the argument.
_RENAMED = "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters
_NO_BUFFERS: dict[str, Any] = {"forward_sync_buffers" if _RENAMED else "broadcast_buffers": False}


def wrap_ddp(model: nn.Module, group: Group, config: TrainConfig, timer: PhaseTimer) -> nn.Module:
    """The model as it is trained: of one rank itself, since DDP would copy every gradient for nobody.

    Args:
        model: On its device.
        group: The ranks.
        config: The run's.
        timer: Told of every bucket where the config asks for detailed timing.

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
    compressed = config.grad_compression == "bf16"
    hook = bf16_compress_hook if compressed else allreduce_hook
    try:
        if config.detailed_timing:
            wrapped.register_comm_hook(
                None, _with_bucket_marks(hook, timer, sent=torch.bfloat16 if compressed else None)
            )
        elif compressed:  # without a hook DDP does what allreduce_hook does
            wrapped.register_comm_hook(None, hook)
    except TypeError as error:  # of a torch without CUDA
        raise UserError(f"this torch cannot exchange bf16: {error}", where="grad_compression") from error
    return wrapped


def _with_bucket_marks(
    hook: Callable[..., Future[Tensor]], timer: PhaseTimer, sent: torch.dtype | None
) -> Callable[..., Future[Tensor]]:
    """The hook, with the beginning and the end of each bucket's exchange marked.

    Args:
        hook: That exchanges a bucket.
        timer: Keeps the marks.
        sent: As what gradients are exchanged; None: as what they are.
    """

    @functools.wraps(hook)  # DDP looks at a hook's name and types
    def watched(_: None, bucket: GradBucket) -> Future[Tensor]:
        gradients = bucket.buffer()
        marks = timer.bucket_ready(gradients.numel() * (sent or gradients.dtype).itemsize)

        def done(future: Future[Tensor]) -> Tensor:
            # On a GPU this runs with a stream as the current one that has waited for the exchange.
            marks.done = timer.mark()
            return future.value()

        return hook(None, bucket).then(done)

    return watched


def skip_gradient_sync(model: nn.Module, more_to_come: bool) -> AbstractContextManager[None]:
    """Gradients add up locally until the last batch of an optimizer step, whose backward exchanges them all."""
    return model.no_sync() if more_to_come and isinstance(model, DistributedDataParallel) else nullcontext()


def broadcast_buffers(model: nn.Module, group: Group) -> None:
    """Gives all ranks rank 0's running statistics, as batch norm keeps them, before they evaluate or are saved.

    Only buffers that are saved with a model can be such; those of BERT and ViT are constants, and are not.
    """
    if group.backend is not None:
        parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
        for name, value in model.state_dict().items():
            if name not in parameters and isinstance(value, Tensor):
                dist.broadcast(value, src=0)
