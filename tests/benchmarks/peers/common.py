"""The common code of the peers: examples by `datasets`, the start model by transformers, and the stopwatch."""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from datasets import load_dataset
from torchvision.transforms import v2
from transformers import AutoModelForImageClassification, AutoModelForSequenceClassification, AutoTokenizer
from transformers import DataCollatorWithPadding as PadToLongest

from tests.benchmarks.work import Result, Work, load, process_start_s, save

EVAL_BATCH = 32


def arguments(description: str) -> tuple[argparse.Namespace, Work]:
    """Parses the command line of a peer, and reads its work."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--work", type=Path, required=True, help="JSON file of the Work")
    parser.add_argument("--out", type=Path, required=True, help="file to which rank 0 writes its Result as JSON")
    parser.add_argument("--tuned", action="store_true", help="hf_trainer only: settings that its documentation advises")
    parsed = parser.parse_args()
    return parsed, load(Work, parsed.work)


def prepare(work: Work) -> tuple[Any, Any, Any, Callable[..., Any]]:
    """The start model, both splits, and the function that makes a batch, as in transformers' task guides.

    Texts are tokenized once and padded to the longest of their batch; images are decoded and resized on access.
    """
    prepared = _texts(work) if work.model == "bert" else _images(work)
    check_precision(prepared[0], torch.bfloat16 if work.precision == "bf16" else torch.float32)
    return prepared


def check_precision(model: torch.nn.Module, dtype: torch.dtype) -> None:
    """Stops the run in its first forward pass if the layers compute in another precision than the work's.

    Only on a CPU: on a GPU the hook, and its end, would make torch compile the model again.
    """
    if torch.cuda.is_available():
        return

    def check(layer: torch.nn.Module, _: Any, output: torch.Tensor) -> None:
        handle.remove()
        if output.dtype != dtype:
            raise RuntimeError(f"a {type(layer).__name__} layer computes in {output.dtype}, not in {dtype}")

    handle = next(layer for layer in model.modules() if isinstance(layer, torch.nn.Linear)).register_forward_hook(check)


def _texts(work: Work) -> tuple[Any, Any, Any, Callable[..., Any]]:
    tokenizer = AutoTokenizer.from_pretrained(work.start)
    model = AutoModelForSequenceClassification.from_pretrained(work.start)
    splits = load_dataset("csv", data_files=work.files, sep="\t", quoting=3, keep_default_na=False)

    def tokenize(rows: Any) -> Any:
        # Samplers that group by length need the column; the other peers remove it.
        return tokenizer(rows["sentence"], truncation=True, max_length=work.max_length, return_length=True)

    splits = splits.map(tokenize, batched=True, remove_columns=["sentence"]).rename_column("label", "labels")
    return model, splits["train"], splits["eval"], PadToLongest(tokenizer)


def _images(work: Work) -> tuple[Any, Any, Any, Callable[..., Any]]:
    model = AutoModelForImageClassification.from_pretrained(work.start)
    splits = load_dataset("parquet", data_files=work.files)
    # The order that torchvision's documentation advises for speed: resize bytes, then convert to floats.
    transform = v2.Compose(
        [
            v2.PILToTensor(),
            v2.Resize((work.image_size, work.image_size), antialias=True),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(mean=[0.5] * 3, std=[0.5] * 3),
        ]
    )

    def to_pixels(rows: Any) -> Any:
        return {"pixel_values": [transform(image.convert("RGB")) for image in rows["image"]], "labels": rows["label"]}

    def collate(rows: Any) -> Any:
        return {
            "pixel_values": torch.stack([row["pixel_values"] for row in rows]),
            "labels": torch.tensor([row["labels"] for row in rows]),
        }

    splits = splits.with_transform(to_pixels)
    return model, splits["train"], splits["eval"], collate


def decay_groups(model: torch.nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Parameters for AdamW without decay of biases and norms, as in transformers' examples."""
    named = list(model.named_parameters())
    return [
        {"params": [parameter for _, parameter in named if parameter.ndim > 1], "weight_decay": weight_decay},
        {"params": [parameter for _, parameter in named if parameter.ndim <= 1], "weight_decay": 0.0},
    ]


class Stopwatch:
    """Times the loop. It waits for a GPU, but only after the first step and after the last step."""

    def start(self) -> None:
        self._start_s = time.perf_counter()
        self.steps = 0

    def step(self) -> None:
        """Counts a step; called after each optimizer step."""
        self.steps += 1
        if self.steps == 1:
            _wait_for_gpu()
            self._first_step_s = time.perf_counter() - self._start_s
            self._startup_s = time.time() - process_start_s(os.getpid())

    def stop(self) -> None:
        _wait_for_gpu()
        self._train_s = time.perf_counter() - self._start_s

    def report(
        self, out: Path, *, examples: int, train_loss: float, eval_loss: float, accuracy: float, eval_examples: int
    ) -> None:
        """Writes the result of the run; called on rank 0."""
        result = Result(
            train_s=self._train_s,
            first_step_s=self._first_step_s,
            startup_s=self._startup_s,
            steps=self.steps,
            examples=examples,
            train_loss=train_loss,
            eval_loss=eval_loss,
            eval_accuracy=accuracy,
            eval_examples=eval_examples,
        )
        save(result, out)


def _wait_for_gpu() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
