"""Loss and evaluation: every example counts exactly once, whatever the number of ranks."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from disttrain.config.train_config import TrainConfig
from disttrain.data.batches import Examples, RankStep, eval_batches, load_batches
from disttrain.distributed.group import Group
from disttrain.records.record_types import EvalRecord

# Evaluation stores no activations, so it may take more than a rank's training batch.
MIN_EVAL_BATCH = 32


def loss_sum(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy, summed over the examples, so that the parts of a batch add up whatever their sizes.

    Args:
        logits: Class scores, [examples, classes].
        labels: Class indices, [examples].
    """
    return cross_entropy(logits.float(), labels, reduction="sum")


def autocast(config: TrainConfig, device: torch.device) -> AbstractContextManager[None]:
    """The precision of forward passes: bf16 autocast, or none."""
    if config.precision == "bf16":
        return torch.autocast(device.type, torch.bfloat16)
    return nullcontext()


def eval_due(step: RankStep, steps: int, eval_every: int | None) -> bool:
    """Whether to evaluate after this step: the last step, every `eval_every` steps, or by default each epoch's end."""
    if step.step == steps:
        return True
    if eval_every:
        return step.step % eval_every == 0
    return step.last_of_epoch


def evaluate(model: nn.Module, examples: Examples, step: int, config: TrainConfig, group: Group) -> EvalRecord:
    """Loss and accuracy over all evaluation examples, which the ranks divide among them.

    Args:
        model: The model itself, not DDP's wrapper: ranks may have a different number of batches.
        examples: The complete evaluation split.
        step: The number of the last training step.
        config: The run's config.
        group: The ranks.

    Returns:
        The same figures on every rank.
    """
    start = time.perf_counter()
    model.eval()
    env = group.env
    size = max(config.rank_batch(env.world_size), MIN_EVAL_BATCH)
    index_lists = eval_batches(len(examples), env.rank, env.world_size, size, examples.lengths)
    # Loss, correct answers, examples; in float64, where sums of 10^5 losses lose nothing.
    sums = torch.zeros(3, dtype=torch.float64, device=group.device)
    with torch.no_grad():
        for batch in load_batches(examples, index_lists, group.device, config.num_workers):
            with autocast(config, group.device):
                logits = model(batch)
            labels = batch["labels"]
            sums[0] += loss_sum(logits, labels)
            sums[1] += (logits.argmax(dim=-1) == labels).sum()
            sums[2] += len(labels)
    loss, correct, count = group.sum(sums).tolist()  # the only wait for the GPU in an evaluation
    assert count == len(examples)
    return EvalRecord(
        step=step,
        loss=loss / count,
        accuracy=correct / count,
        examples=int(count),
        elapsed_s=time.perf_counter() - start,
    )
