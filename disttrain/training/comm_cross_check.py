"""Passes before training that check the measured cost of the gradient exchange, and do not change the training."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from disttrain.analysis.measured_steps import MeasuredStep
from disttrain.data.batches import Batch
from disttrain.distributed.group import Group
from disttrain.measure.phase_timer import PhaseTimer
from disttrain.records.record_types import CrossCheckRecord
from disttrain.training.ddp import skip_gradient_sync

WARM_UP, PAIRS = 2, 10
_DDP_SAMPLE_RATE = 100  # DDP's default: its logger measures one pass in 100
# The passes without an exchange are a check only if the exchange takes this many times the backward pass. On a CPU a
# shorter exchange takes cores from the backward pass, and without it the ranks drift apart.
MIN_EXCHANGE_RATIO = 3.0


@contextlib.contextmanager
def preserve_training_state(model: nn.Module, optimizer: torch.optim.Optimizer, device: torch.device) -> Iterator[None]:
    """Undoes what the block changes: gradients, random generators, running statistics and the training mode."""
    rng_state = torch.get_rng_state()
    device_rng_state: Tensor | None = None
    if device.type == "cuda":
        device_rng_state = torch.cuda.get_rng_state(device)
    buffers = [buffer.clone() for buffer in model.buffers()]
    was_training = model.training
    model.train()
    yield
    model.train(was_training)
    optimizer.zero_grad(set_to_none=True)
    for buffer, before in zip(model.buffers(), buffers, strict=True):
        buffer.copy_(before)
    torch.set_rng_state(rng_state)
    if device_rng_state is not None:
        torch.cuda.set_rng_state(device_rng_state, device)


def cross_check(
    ddp_model: nn.Module,
    batches: Iterator[Batch],
    loss_of: Callable[[Batch], Tensor],
    optimizer: torch.optim.Optimizer,
    group: Group,
    timer: PhaseTimer,
) -> CrossCheckRecord | None:
    """Estimates the exposed communication of the backward pass a second time, by passes without a gradient exchange.

    Each batch is used in both kinds of pass. The order of the two alternates, and all ranks start a pass together.

    Args:
        ddp_model: The model in DDP's wrapper, or the model itself in a run of one rank.
        batches: Training batches of this rank.
        loss_of: The forward pass: the loss of a batch.
        optimizer: The optimizer of the model.
        group: The ranks.
        timer: The timer that the wrapper's communication hook reports buckets to.

    Returns:
        The record of all estimates; None with one rank, which exchanges nothing.
    """
    if not isinstance(ddp_model, DistributedDataParallel):
        return None
    began_s = time.perf_counter()
    by_ddp: list[float | None] = []
    _set_ddp_sample_rate(ddp_model, 1)
    for number, batch in enumerate(islice(batches, WARM_UP + PAIRS)):
        if number == WARM_UP:
            timer.read()
            by_ddp.clear()
        exchange_first = number % 2 == 1
        for exchanges in (exchange_first, not exchange_first):
            _time_pass(ddp_model, batch, loss_of, optimizer, group, timer, exchanges=exchanges)
            if exchanges:
                by_ddp.append(_ddp_exposed_ms(ddp_model))
    _set_ddp_sample_rate(ddp_model, _DDP_SAMPLE_RATE)
    # DDP reports a pass during the next pass with an exchange, so the first figure belongs to a warm-up pass.
    logged = [exposed_ms for exposed_ms in by_ddp[1:] if exposed_ms is not None]
    ddp_exposed_ms: float | None = None
    if logged:
        ddp_exposed_ms = statistics.median(logged)
    return _cross_check_record(timer.read(), ddp_exposed_ms, time.perf_counter() - began_s)


def _time_pass(
    ddp_model: DistributedDataParallel,
    batch: Batch,
    loss_of: Callable[[Batch], Tensor],
    optimizer: torch.optim.Optimizer,
    group: Group,
    timer: PhaseTimer,
    *,
    exchanges: bool,
) -> None:
    group.barrier()
    if group.device.type == "cuda":
        torch.cuda.synchronize(group.device)  # the measured pass must start with an empty queue
    timer.restart()
    with skip_gradient_sync(ddp_model, more_to_come=not exchanges):
        loss = loss_of(batch)
        timer.lap("forward")
        loss.backward()  # type: ignore[no-untyped-call]
        timer.lap("backward")
    timer.end_step()
    optimizer.zero_grad(set_to_none=True)


def _cross_check_record(
    passes: Sequence[MeasuredStep], ddp_exposed_ms: float | None, elapsed_s: float
) -> CrossCheckRecord:
    synced = [step for step in passes if step.exchange is not None]
    no_sync = [step for step in passes if step.exchange is None]
    backward_ms, no_sync_backward_ms = (
        statistics.median(step.times.backward_ms for step in kind) for kind in (synced, no_sync)
    )
    exchange_ms = statistics.median(
        (step.times.exposed_comm_ms or 0.0) + (step.times.overlapped_comm_ms or 0.0) for step in synced
    )
    exposed_comm_ms = statistics.median(step.times.exposed_comm_ms or 0.0 for step in synced)
    return CrossCheckRecord(
        passes=len(no_sync),
        backward_ms=backward_ms,
        no_sync_backward_ms=no_sync_backward_ms,
        no_sync_exposed_ms=backward_ms - no_sync_backward_ms,
        exposed_comm_ms=exposed_comm_ms,
        exchange_ms=exchange_ms,
        is_check=exchange_ms > MIN_EXCHANGE_RATIO * max(no_sync_backward_ms, backward_ms - exposed_comm_ms),
        ddp_exposed_ms=ddp_exposed_ms,
        elapsed_s=elapsed_s,
    )


def _set_ddp_sample_rate(ddp_model: DistributedDataParallel, every: int) -> None:
    """Makes DDP's logger measure one pass in `every`, if this torch has the setting."""
    if hasattr(ddp_model, "_set_ddp_runtime_logging_sample_rate"):
        ddp_model._set_ddp_runtime_logging_sample_rate(every)  # type: ignore[no-untyped-call]


def _ddp_exposed_ms(ddp_model: DistributedDataParallel) -> float | None:
    """The exposed communication of the previous pass by DDP's own logger; None if this torch does not report it."""
    get_data: Callable[[], dict[str, Any]] | None = getattr(ddp_model, "_get_ddp_logging_data", None)
    if get_data is None:
        return None
    data = get_data()
    comm_ns, overlap_ns = (data.get(name) for name in ("backward_comm_time", "backward_compute_comm_overlap_time"))
    if comm_ns is None or overlap_ns is None:
        return None
    return (float(comm_ns) - float(overlap_ns)) / 1e6
