"""Passes that nothing is learnt from: one that settles DDP's buckets, and some that check what the exchange costs."""

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

from disttrain.data.batches import Batch
from disttrain.distributed.group import Group
from disttrain.measure.phase_timer import PhaseTimer, StepTimes
from disttrain.records.record_types import CrossCheckRecord
from disttrain.training.ddp import skip_gradient_sync

WARM_UP, PAIRS = 2, 10
_DDP_SAMPLES = 100  # DDP's own habit: of so many passes it looks at one
# How many times the backward pass an exchange must take for the passes without it to be a check: on a CPU a shorter one
# takes the cores that the backward pass would have, and ranks drift apart without it.
CHECKS_FROM = 3.0


@contextlib.contextmanager
def preserve_training_state(model: nn.Module, optimizer: torch.optim.Optimizer, device: torch.device) -> Iterator[None]:
    """Leaves no trace of what the block computes: no gradients, no drawn random numbers, no running statistics."""
    random = torch.get_rng_state()
    device_random = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
    buffers = [buffer.clone() for buffer in model.buffers()]
    was_training = model.training
    model.train()
    yield
    model.train(was_training)
    optimizer.zero_grad(set_to_none=True)
    for buffer, before in zip(model.buffers(), buffers, strict=True):
        buffer.copy_(before)
    torch.set_rng_state(random)
    if device_random is not None:
        torch.cuda.set_rng_state(device_random, device)


def cross_check(
    trained: nn.Module,
    batches: Iterator[Batch],
    loss_of: Callable[[Batch], Tensor],
    optimizer: torch.optim.Optimizer,
    group: Group,
    timer: PhaseTimer,
) -> CrossCheckRecord | None:
    """The exchange that the backward pass waits for, estimated a second time: by passes without any exchange.

    Each batch goes through both kinds of pass, in turn, all ranks starting together.

    Args:
        trained: The model in DDP's wrapper; of one rank there is nothing to check.
        batches: Some of this rank's.
        loss_of: The forward pass.
        optimizer: Of the model.
        group: The ranks.
        timer: That the wrapper's hook tells of its buckets.
    """
    if not isinstance(trained, DistributedDataParallel):
        return None
    began_s = time.perf_counter()
    by_ddp: list[float | None] = []
    _let_ddp_look(trained, every=1)
    for number, batch in enumerate(islice(batches, WARM_UP + PAIRS)):
        if number == WARM_UP:
            timer.read()
            by_ddp.clear()
        for exchanges in (True, False) if number % 2 else (False, True):
            _pass(trained, batch, loss_of, optimizer, group, timer, exchanges=exchanges)
            if exchanges:
                by_ddp.append(_logged(trained))
    _let_ddp_look(trained, every=_DDP_SAMPLES)
    # DDP tells of a pass in the next one that exchanges: the first figure is of a pass that warmed up.
    logged = [each for each in by_ddp[1:] if each is not None]
    ddp_exposed_ms = statistics.median(logged) if logged else None
    return _compared(timer.read(), ddp_exposed_ms, time.perf_counter() - began_s)


def _pass(
    trained: DistributedDataParallel,
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
        torch.cuda.synchronize(group.device)  # an edge of what is measured: the queue must be empty
    timer.restart()
    with skip_gradient_sync(trained, more_to_come=not exchanges):
        loss = loss_of(batch)
        timer.lap("forward")
        loss.backward()  # type: ignore[no-untyped-call]
        timer.lap("backward")
    timer.end_step()
    optimizer.zero_grad(set_to_none=True)


def _compared(times: Sequence[StepTimes], ddp_exposed_ms: float | None, elapsed_s: float) -> CrossCheckRecord:
    with_exchange = [each for each in times if each.exchange is not None]
    without = [each for each in times if each.exchange is None]
    backward_ms, alone_ms = (statistics.median(each.backward_ms for each in kind) for kind in (with_exchange, without))
    exchange_ms = statistics.median(
        (each.exposed_comm_ms or 0.0) + each.exchange.overlapped_comm_ms() for each in with_exchange if each.exchange
    )
    exposed_comm_ms = statistics.median(each.exposed_comm_ms or 0.0 for each in with_exchange)
    return CrossCheckRecord(
        passes=len(without),
        backward_ms=backward_ms,
        no_sync_backward_ms=alone_ms,
        no_sync_exposed_ms=backward_ms - alone_ms,
        exposed_comm_ms=exposed_comm_ms,
        exchange_ms=exchange_ms,
        is_check=exchange_ms > CHECKS_FROM * max(alone_ms, backward_ms - exposed_comm_ms),
        ddp_exposed_ms=ddp_exposed_ms,
        elapsed_s=elapsed_s,
    )


def _let_ddp_look(trained: DistributedDataParallel, every: int) -> None:
    """Has DDP's logger look at one of so many passes, where this torch has one."""
    if hasattr(trained, "_set_ddp_runtime_logging_sample_rate"):
        trained._set_ddp_runtime_logging_sample_rate(every)  # type: ignore[no-untyped-call]


def _logged(trained: DistributedDataParallel) -> float | None:
    """What DDP's own logger says of the pass before; None where this torch says nothing, in milliseconds."""
    logged: Callable[[], dict[str, Any]] | None = getattr(trained, "_get_ddp_logging_data", None)
    data = logged() if logged else {}
    taken, hidden = (data.get(name) for name in ("backward_comm_time", "backward_compute_comm_overlap_time"))
    if taken is None or hidden is None:
        return None
    return (float(taken) - float(hidden)) / 1e6  # of nanoseconds
