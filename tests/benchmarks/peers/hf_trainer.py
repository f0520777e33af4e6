"""The work with transformers' Trainer: with its defaults, or with `--tuned` as its documentation advises.

torchrun --standalone --nproc_per_node=2 tests/benchmarks/peers/hf_trainer.py --work work.json --out result.json --tuned
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

import torch
from transformers import Trainer, TrainerCallback, TrainingArguments, set_seed

from tests.benchmarks.peers.common import EVAL_BATCH, Stopwatch, arguments, prepare
from tests.benchmarks.work import Work


def work_arguments(work: Work) -> dict[str, Any]:
    """The arguments that the work needs; none of them is chosen for speed."""
    return {
        "num_train_epochs": work.epochs,
        "per_device_train_batch_size": work.per_gpu_batch,
        "per_device_eval_batch_size": EVAL_BATCH,
        "learning_rate": work.lr,
        "weight_decay": work.weight_decay,
        "adam_beta1": work.beta1,
        "adam_beta2": work.beta2,
        "lr_scheduler_type": "linear",
        "warmup_steps": work.warmup_ratio,  # a value below 1 is a share of the steps
        "max_grad_norm": 0.0,  # no contender clips; the default of 1.0 would change the learning and cost time
        # From its guide to training on several CPUs: without it, each rank trains separately on all examples.
        "use_cpu": not torch.cuda.is_available(),
        "bf16": work.precision == "bf16",
        "seed": work.seed,
        "save_strategy": "no",  # no contender saves
        "eval_strategy": "no",  # evaluated once, after the stopwatch has stopped
        "remove_unused_columns": work.model == "bert",  # the images' transform needs its column
    }


def tuned_arguments(work: Work) -> dict[str, Any]:
    """The arguments that its documentation advises for speed. Fused AdamW is already its default."""
    text = {"train_sampling_strategy": "group_by_length", "length_column_name": "length"}
    gpu = {"torch_compile": True}
    return {
        "optim": "adamw_torch_fused",
        "logging_strategy": "no",
        "disable_tqdm": True,
        "report_to": "none",
        # Avoids a collective in each step; without accumulation the loss is the mean over the batch in both cases.
        "average_tokens_across_devices": False,
        "ddp_find_unused_parameters": False,
        "dataloader_num_workers": work.peer_workers,
        "dataloader_persistent_workers": work.peer_workers > 0,
        **(text if work.model == "bert" else {}),
        **(gpu if torch.cuda.is_available() else {}),
    }


class Clock(TrainerCallback):  # type: ignore[misc]
    """Calls the stopwatch when the loop begins, after each step, and when the loop ends."""

    def __init__(self, stopwatch: Stopwatch) -> None:
        self._stopwatch = stopwatch

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self._stopwatch.start()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self._stopwatch.step()

    def on_train_end(self, *_: Any, **__: Any) -> None:
        self._stopwatch.stop()


def measures(prediction: Any) -> dict[str, float]:
    """The accuracy and loss of an evaluation; the Trainer's eval_loss of BERT is multiplied by the number of ranks."""
    logits, labels = torch.tensor(prediction.predictions).float(), torch.tensor(prediction.label_ids)
    loss = torch.nn.functional.cross_entropy(logits, labels)
    correct = logits.argmax(-1) == labels
    return {"accuracy": correct.double().mean().item(), "cross_entropy": loss.item(), "examples": len(labels)}


def main() -> None:
    """Trains and evaluates on one rank."""
    options, work = arguments("HF Trainer")
    set_seed(work.seed)
    model, train_set, eval_set, collate = prepare(work)
    with tempfile.TemporaryDirectory() as folder:
        chosen = work_arguments(work) | (tuned_arguments(work) if options.tuned else {})
        trainer = Trainer(
            model=model,
            args=TrainingArguments(output_dir=folder, **chosen),
            train_dataset=train_set,
            eval_dataset=eval_set,
            data_collator=collate,
            compute_metrics=measures,
            callbacks=[Clock(stopwatch := Stopwatch())],
        )
        trained = trainer.train()
        metrics = trainer.evaluate()
    if trainer.is_world_process_zero():
        # The default average_tokens_across_devices multiplies the loss by the number of ranks. This is right for models
        # that divide it by the tokens of all ranks, but BERT does not.
        multiplied = work.model == "bert" and not options.tuned
        stopwatch.report(
            options.out,
            examples=trained.global_step * work.per_gpu_batch * trainer.args.world_size,
            train_loss=trained.training_loss / (trainer.args.world_size if multiplied else 1),
            eval_loss=metrics["eval_cross_entropy"],
            accuracy=metrics["eval_accuracy"],
            eval_examples=metrics["eval_examples"],
        )


main()
