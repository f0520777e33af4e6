"""DDP: the wrapper that all-reduces gradients, and the passes in which it does not."""

from __future__ import annotations

import functools
import inspect
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
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
from disttrain.distributed.shared_memory import SharedMean, may_share, open_shared_mean
from disttrain.errors import UserError
from disttrain.measure.phase_timer import PhaseTimer

# Most buffers are constants (positions, mean pixels) and equal on every rank. If rank 0 sent them at each forward pass,
# the other ranks would wait for them in the time of the forward pass. `broadcast_buffers` sends them when needed.
# torch 2.14 renamed the argument.
_RENAMED = "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters
_NO_BUFFERS: dict[str, Any] = {"forward_sync_buffers" if _RENAMED else "broadcast_buffers": False}


@dataclass(frozen=True)
class GradientExchange:
    """How the ranks exchange gradients: through shared memory, or by all-reduces of the backend."""

    shared: SharedMean | None = None
    notices: tuple[str, ...] = ()


def open_exchange(model: nn.Module, group: Group, config: TrainConfig) -> GradientExchange:
    """Chooses the exchange, the same on every rank; all ranks call this.

    Detailed timing is about all-reduces, and only all-reduces are compressed.
    """
    if config.detailed_timing or config.grad_compression == "bf16" or not may_share(group):
        return GradientExchange()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    shared = open_shared_mean(group, [parameter.numel() * parameter.element_size() for parameter in trained])
    if shared is None:
        notice = "the ranks cannot share memory, so gloo exchanges the gradients, which is slower"
        return GradientExchange(notices=(notice,))
    return GradientExchange(shared)


def wrap_ddp(
    model: nn.Module,
    group: Group,
    config: TrainConfig,
    timer: PhaseTimer,
    shared: SharedMean | None = None,
    *,
    find_unused: bool = False,
) -> nn.Module:
    """The model in DDP's wrapper; with one rank the model itself, because DDP would copy every gradient for nothing.

    Args:
        model: The model on its device.
        group: The ranks.
        config: The run's config.
        timer: The timer that gets the marks of every bucket if the config sets detailed_timing.
        shared: The memory in which the ranks exchange gradients; None for all-reduces of the backend.
        find_unused: Whether some parameters get no gradient. DDP then looks for them in each step.

    Raises:
        UserError: This build of torch cannot exchange gradients in the configured precision.
    """
    if group.backend is None:
        return model
    # With one example, gradients of embeddings that all positions share have unusual strides in dimensions of size 1.
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
    wrapped = DistributedDataParallel(
        model,
        bucket_cap_mb=config.bucket_cap_mb,
        gradient_as_bucket_view=True,
        find_unused_parameters=find_unused,
        **_NO_BUFFERS,
    )
    compressed = config.grad_compression == "bf16"
    hook: Callable[..., Future[Tensor]] | None = None  # without a hook DDP does the same as allreduce_hook
    sent_dtype: torch.dtype | None = None
    if compressed:
        hook, sent_dtype = bf16_compress_hook, torch.bfloat16
    if config.detailed_timing:
        hook = _with_bucket_marks(hook or allreduce_hook, timer, sent_dtype)
    if shared is not None:
        hook = _shared_memory_hook(shared)
    try:
        if hook is not None:
            wrapped.register_comm_hook(None, hook)
    except TypeError as error:  # from a torch without CUDA
        raise UserError(f"this torch cannot exchange bf16: {error}", where="grad_compression") from error
    return wrapped


def _shared_memory_hook(shared: SharedMean) -> Callable[..., Future[Tensor]]:
    """The hook that exchanges gradients through memory that the ranks share."""
    waiting: list[tuple[Future[Tensor], Tensor]] = []

    @functools.wraps(allreduce_hook)  # DDP reads a hook's name and types
    def shared_memory_hook(_: None, bucket: GradBucket) -> Future[Tensor]:
        gradients, future = bucket.buffer(), Future[Tensor]()
        shared.add(gradients)
        waiting.append((future, gradients))
        if bucket.is_last():
            shared.finish()
            for waiting_future, mean in waiting:
                waiting_future.set_result(mean)
            waiting.clear()
        return future

    return shared_memory_hook


def _with_bucket_marks(
    hook: Callable[..., Future[Tensor]], timer: PhaseTimer, sent_dtype: torch.dtype | None
) -> Callable[..., Future[Tensor]]:
    """The hook, with marks at the start and at the end of each bucket's all-reduce.

    Args:
        hook: The communication hook, which all-reduces a bucket.
        timer: The timer that stores the marks.
        sent_dtype: The dtype in which gradients are sent; None for their own dtype.
    """

    @functools.wraps(hook)  # DDP reads a hook's name and types
    def marking_hook(_: None, bucket: GradBucket) -> Future[Tensor]:
        gradients = bucket.buffer()
        marks = timer.bucket_ready(gradients.numel() * (sent_dtype or gradients.dtype).itemsize)

        def done(future: Future[Tensor]) -> Tensor:
            # On a GPU, the current stream of this callback has waited for the all-reduce.
            marks.done = timer.mark()
            return future.value()

        return hook(None, bucket).then(done)

    return marking_hook


def skip_gradient_sync(model: nn.Module, more_to_come: bool) -> AbstractContextManager[None]:
    """Adds gradients up locally while more batches of the optimizer step follow; the last batch all-reduces them."""
    if more_to_come and isinstance(model, DistributedDataParallel):
        return model.no_sync()
    return nullcontext()


def broadcast_buffers(model: nn.Module, group: Group) -> None:
    """Copies rank 0's running statistics, such as those of batch norm, to all ranks before an evaluation or a save.

    Only buffers that are saved with the model can be running statistics. The buffers of BERT and ViT are constants,
    which are not saved.
    """
    if group.backend is not None:
        parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
        for name, value in model.state_dict().items():
            if name not in parameters and isinstance(value, Tensor):
                dist.broadcast(value, src=0)
