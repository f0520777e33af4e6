"""torch.compile of a run's model, where a compiler works on every rank."""

from __future__ import annotations

import torch
from torch import nn
from torch._dynamo import config as dynamo
from torch._inductor import config as inductor

from disttrain.distributed.group import Group

RECOMPILE_LIMIT = 32


def why_not_compiled(group: Group) -> tuple[str, ...]:
    """What the user should know where the compiler does not work on every rank; empty where it does."""
    problem = _problem(group.device)
    failed = torch.tensor([problem is not None], dtype=torch.int64, device=group.device)
    # Ranks that ran other kernels than their neighbours would sum other roundings, and wait for the slow ones.
    if int(group.sum(failed)):
        return (f"not compiled: {problem or 'the compiler does not work on another rank'}",)
    return ()


def compile_model(model: nn.Module, *, dynamic: bool) -> None:
    """Compiles the model's forward pass in place; the first steps take the time for it.

    Args:
        model: Not yet in DDP's wrapper; its parameters keep their names.
        dynamic: Whether batches differ in shape: one graph then serves all of them.
    """
    # Batches of texts make a graph each of training and evaluation, of one text and of many, of sizes that happen to be
    # equal. Beyond its limit, 8, dynamo runs what is new without compiling it.
    dynamo.recompile_limit = max(dynamo.recompile_limit, RECOMPILE_LIMIT)
    model.compile(dynamic=True if dynamic else None)


def _problem(device: torch.device) -> str | None:
    """Why nothing can be compiled here, in one line; found out by compiling something small."""
    try:
        # Without its caches, which would answer where a compiler once was.
        with inductor.patch(force_disable_caches=True):
            torch.compile(lambda values: values * 2 + 1)(torch.ones(8, device=device))
    except Exception as error:  # noqa: BLE001 - of torch's, triton's and the compiler's own kinds
        return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return None
