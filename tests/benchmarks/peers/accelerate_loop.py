"""The work with Hugging Face accelerate: the loop of its documentation, with fused AdamW.

torchrun --standalone --nproc_per_node=2 tests/benchmarks/peers/accelerate_loop.py --work work.json --out result.json
"""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch.utils.data import DataLoader
from transformers import get_linear_schedule_with_warmup

from tests.benchmarks.peers.common import EVAL_BATCH, Stopwatch, arguments, decay_groups, prepare
from tests.benchmarks.work import Work

OPTIMIZER: dict[str, Any] = {"fused": True}


def accelerator_arguments(work: Work) -> dict[str, Any]:
    """The arguments of the Accelerator; without `cpu`, each rank on a CPU would train separately."""
    return {
        "cpu": not torch.cuda.is_available(),
        "mixed_precision": "bf16" if work.precision == "bf16" else "no",
    }


def loaders(work: Work, train_set: Any, eval_set: Any, collate: Any) -> tuple[Any, Any]:
    """The DataLoaders of both splits, with the batch size of one rank."""
    if work.model == "bert":
        train_set, eval_set = train_set.remove_columns("length"), eval_set.remove_columns("length")
    # Only GPUs need pinned memory.
    options: dict[str, Any] = {"collate_fn": collate, "pin_memory": torch.cuda.is_available()}
    options |= {"num_workers": work.peer_workers, "persistent_workers": work.peer_workers > 0}
    return (
        DataLoader(train_set, batch_size=work.per_gpu_batch, shuffle=True, **options),
        DataLoader(eval_set, batch_size=EVAL_BATCH, **options),
    )


def main() -> None:
    """Trains and evaluates on one rank."""
    options, work = arguments("accelerate")
    accelerator = Accelerator(**accelerator_arguments(work))
    set_seed(work.seed)
    model, train_set, eval_set, collate = prepare(work)
    train_loader, eval_loader = loaders(work, train_set, eval_set, collate)
    groups = decay_groups(model, work.weight_decay)
    optimizer: Any = torch.optim.AdamW(groups, lr=work.lr, betas=(work.beta1, work.beta2), **OPTIMIZER)
    # The steps of one process: the prepared schedule does one step for each process.
    steps = work.epochs * len(train_loader)
    scheduler = get_linear_schedule_with_warmup(optimizer, math.ceil(work.warmup_ratio * steps), steps)
    model, optimizer, train_loader, eval_loader, scheduler = accelerator.prepare(
        model, optimizer, train_loader, eval_loader, scheduler
    )
    stopwatch, examples, total = Stopwatch(), 0, torch.zeros((), device=accelerator.device)
    model.train()
    stopwatch.start()
    for _ in range(work.epochs):
        for batch in train_loader:
            loss = model(**batch).loss
            accelerator.backward(loss)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
            total += loss.detach()
            examples += len(batch["labels"])
            stopwatch.step()
    stopwatch.stop()
    eval_loss, accuracy, count = evaluate(accelerator, model, eval_loader)
    train_loss = accelerator.reduce(total / stopwatch.steps, "mean").item()
    examples = int(accelerator.reduce(torch.tensor(examples, device=accelerator.device), "sum").item())
    if accelerator.is_main_process:
        stopwatch.report(
            options.out,
            examples=examples,
            train_loss=train_loss,
            eval_loss=eval_loss,
            accuracy=accuracy,
            eval_examples=count,
        )
    accelerator.end_training()


def evaluate(accelerator: Any, model: Any, eval_loader: Any) -> tuple[float, float, int]:
    """The mean loss, the accuracy and the number of examples; each example counts once."""
    model.eval()
    losses, correct = [], []
    for batch in eval_loader:
        with torch.no_grad():
            logits = model(**batch).logits.float()
        logits, labels = accelerator.gather_for_metrics((logits, batch["labels"]))
        losses.append(torch.nn.functional.cross_entropy(logits, labels, reduction="none"))
        correct.append(logits.argmax(-1) == labels)
    return torch.cat(losses).mean().item(), torch.cat(correct).float().mean().item(), len(torch.cat(correct))


main()
