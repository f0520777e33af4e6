"""The work with Lightning Fabric: the loop of its documentation, with fused AdamW.

torchrun --standalone --nproc_per_node=2 tests/benchmarks/peers/fabric_loop.py --work work.json --out result.json
"""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

import torch
from lightning_fabric import Fabric
from torch.utils.data import DataLoader
from transformers import get_linear_schedule_with_warmup

from tests.benchmarks.peers.common import EVAL_BATCH, Stopwatch, arguments, decay_groups, prepare
from tests.benchmarks.work import Work

OPTIMIZER: dict[str, Any] = {"fused": True}


def fabric_arguments(work: Work) -> dict[str, Any]:
    """The arguments of Fabric; "auto" uses no DDP with one rank."""
    return {
        "accelerator": "auto",
        "devices": work.world_size,
        "strategy": "ddp" if work.world_size > 1 else "auto",
        "precision": "bf16-mixed" if work.precision == "bf16" else "32-true",
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
    options, work = arguments("Lightning Fabric")
    fabric = Fabric(**fabric_arguments(work))
    fabric.launch()
    fabric.seed_everything(work.seed)
    model, train_set, eval_set, collate = prepare(work)
    model.train()
    groups = decay_groups(model, work.weight_decay)
    optimizer: Any = torch.optim.AdamW(groups, lr=work.lr, betas=(work.beta1, work.beta2), **OPTIMIZER)
    scheduler = get_linear_schedule_with_warmup(optimizer, math.ceil(work.warmup_ratio * work.steps), work.steps)
    model, optimizer = fabric.setup(model, optimizer)
    train_loader, eval_loader = fabric.setup_dataloaders(*loaders(work, train_set, eval_set, collate))
    stopwatch, examples, total = Stopwatch(), 0, torch.zeros((), device=fabric.device)
    stopwatch.start()
    for _ in range(work.epochs):
        for batch in train_loader:
            optimizer.zero_grad()
            loss = model(**batch).loss
            fabric.backward(loss)
            optimizer.step()
            scheduler.step()
            total += loss.detach()
            examples += len(batch["labels"])
            stopwatch.step()
    stopwatch.stop()
    eval_loss, accuracy, count = evaluate(fabric, model, eval_loader)
    train_loss = fabric.all_reduce(total / stopwatch.steps, reduce_op="mean").item()
    examples = int(fabric.all_reduce(torch.tensor(examples, device=fabric.device), reduce_op="sum").item())
    if fabric.is_global_zero:
        stopwatch.report(
            options.out,
            examples=examples,
            train_loss=train_loss,
            eval_loss=eval_loss,
            accuracy=accuracy,
            eval_examples=count,
        )


def evaluate(fabric: Any, model: Any, eval_loader: Any) -> tuple[float, float, int]:
    """The mean loss, the accuracy and the number of examples; the ranks' parts are equal: no example counts twice."""
    model.eval()
    sums = torch.zeros(3, dtype=torch.float64, device=fabric.device)
    for batch in eval_loader:
        with torch.no_grad():
            logits = model(**batch).logits.float()
        labels = batch["labels"]
        sums[0] += torch.nn.functional.cross_entropy(logits, labels, reduction="sum")
        sums[1] += (logits.argmax(-1) == labels).sum()
        sums[2] += len(labels)
    loss, correct, count = fabric.all_reduce(sums, reduce_op="sum").tolist()
    return loss / count, correct / count, int(count)


main()
