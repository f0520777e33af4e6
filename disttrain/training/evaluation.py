"""Loss and evaluation: every example counts exactly once, whatever the number of ranks."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from disttrain.config.train_config import TrainConfig
from disttrain.data.batches import Examples, RankStep, eval_batches, load_batches
from disttrain.distributed.group import Group
from disttrain.records.record_types import EvalRecord
from disttrain.training.precision import autocast

# Evaluation stores no activations, so it may take more than a rank's training batch.
MIN_EVAL_BATCH = 32


def loss_sum(logits: Tensor, labels: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Cross-entropy, summed over the examples, so that the parts of a batch add up whatever their sizes.

    Args:
        logits: Class scores, [examples, classes].
        labels: Class indices, [examples].
        label_smoothing: The share of each label that is spread over all classes (Szegedy et al. 2016).
    """
    return cross_entropy(logits.float(), labels, reduction="sum", label_smoothing=label_smoothing)


def eval_due(step: RankStep, steps: int, eval_every: int | None) -> bool:
    """Whether to evaluate after this step: the last step, every `eval_every` steps, or by default each epoch's end."""
    if step.step == steps:
        return True
    if eval_every:
        return step.step % eval_every == 0
    return step.last_of_epoch


def evaluate(
    model: nn.Module, examples: Examples, classes: int, step: int, config: TrainConfig, group: Group
) -> EvalRecord:
    """Loss, accuracy and macro F1 over all evaluation examples, which the ranks divide among them.

    Args:
        model: The model itself, not DDP's wrapper: ranks may have a different number of batches.
        examples: The complete evaluation split.
        classes: The number of classes.
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
    # Loss, correct answers, examples; then for each class its correct answers, its predictions and its examples. In
    # float64, where sums of 10^5 losses lose nothing.
    sums = torch.zeros(3 + 3 * classes, dtype=torch.float64, device=group.device)
    correct_of, predicted_of, labelled_of = sums[3:].view(3, classes)
    with torch.no_grad():
        for batch in load_batches(examples, index_lists, group.device, config.num_workers):
            with autocast(config, group.device):
                logits = model(batch)
            labels = batch["labels"]
            predicted = logits.argmax(dim=-1)
            is_correct = (predicted == labels).double()
            sums[0] += loss_sum(logits, labels, config.label_smoothing)
            sums[1] += is_correct.sum()
            sums[2] += len(labels)
            correct_of.scatter_add_(0, labels, is_correct)
            predicted_of.scatter_add_(0, predicted, torch.ones_like(is_correct))
            labelled_of.scatter_add_(0, labels, torch.ones_like(is_correct))
    loss, correct, count, *by_class = group.sum(sums).tolist()  # the only wait for the GPU in an evaluation
    assert count == len(examples)
    return EvalRecord(
        step=step,
        loss=loss / count,
        accuracy=correct / count,
        macro_f1=_macro_f1(by_class[:classes], by_class[classes : 2 * classes], by_class[2 * classes :]),
        examples=int(count),
        elapsed_s=time.perf_counter() - start,
    )


def _macro_f1(correct: Sequence[float], predicted: Sequence[float], labelled: Sequence[float]) -> float:
    """The mean F1 score of the classes that occur among labels or predictions, as scikit-learn's f1_score computes it.

    Args:
        correct: The number of correct answers of each class.
        predicted: The number of predictions of each class.
        labelled: The number of examples of each class.
    """
    scores = [
        2 * right / (guesses + examples)
        for right, guesses, examples in zip(correct, predicted, labelled, strict=True)
        if guesses + examples
    ]
    return sum(scores) / len(scores)
