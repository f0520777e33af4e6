"""Compiles a run's model with torch.compile, if the compiler works on every rank."""

from __future__ import annotations

import torch
from torch import nn
from torch._dynamo import config as dynamo
from torch._inductor import config as inductor

from disttrain.distributed.group import Group
from disttrain.errors import first_line

RECOMPILE_LIMIT = 32


def why_not_compiled(group: Group) -> tuple[str, ...]:
    """A notice with the reason if the compiler does not work on every rank; empty if it does."""
    problem = _problem(group.device)
    failed = torch.tensor([problem is not None], dtype=torch.int64, device=group.device)
    # If only some ranks were compiled, their gradients would round differently, and they would wait for the others.
    if int(group.sum(failed)):
        return (f"not compiled: {problem or 'the compiler does not work on another rank'}",)
    return ()


def compile_model(model: nn.Module, *, dynamic: bool) -> None:
    """Compiles the model's forward pass in place; the first steps become slower, because they compile.

    Args:
        model: The model, before DDP wraps it; its parameter names do not change.
        dynamic: Whether batches differ in shape; all of them then use one graph.
    """
    # Batches of texts need several graphs: for training and evaluation, for one text and several, and for sizes that
    # happen to be equal. Above its limit, by default 8, dynamo does not compile any more graphs.
    dynamo.recompile_limit = max(dynamo.recompile_limit, RECOMPILE_LIMIT)
    model.compile(dynamic=dynamic or None)


def _problem(device: torch.device) -> str | None:
    """The reason why this rank cannot compile, in one line, from a test with a small function; None if it can."""
    try:
        # Without its caches, which may have results from a time when there was a compiler.
        with inductor.patch(force_disable_caches=True):
            torch.compile(lambda values: values * 2 + 1)(torch.ones(8, device=device))
    except Exception as error:  # noqa: BLE001 - torch, triton and the compiler raise errors of many classes
        return first_line(error)
    return None
