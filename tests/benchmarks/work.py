"""The work of one run, and its result: the interface between the harness and the contenders."""

from __future__ import annotations

import dataclasses
import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Work:
    """The work, the same for every contender; it does not say how the work is done."""

    model: str  # bert, vit
    start: str  # folder with the start weights of all contenders, for from_pretrained
    data: str  # folder with the files of both splits, which have only the examples of the run
    train_examples: int
    eval_examples: int
    world_size: int
    per_gpu_batch: int
    epochs: int = 1
    lr: float = 2e-5
    weight_decay: float = 0.01
    beta1: float = 0.9
    beta2: float = 0.999
    # Linear decay to 0. Without a warm-up, for which libraries differ by one step, all schedules are the same.
    warmup_ratio: float = 0.0
    max_length: int = 128  # tokens
    image_size: int = 224  # pixels
    precision: str = "fp32"  # fp32, bf16
    seed: int = 0
    peer_workers: int = 0  # data loading processes of each tuned peer

    def __post_init__(self) -> None:
        # Otherwise the work would differ: some peers fill the last batch with repeated examples, or drop it.
        assert self.train_examples % (self.world_size * self.per_gpu_batch) == 0
        assert self.eval_examples % self.world_size == 0

    @property
    def steps(self) -> int:
        """The optimizer steps of the complete run."""
        return self.epochs * self.train_examples // (self.world_size * self.per_gpu_batch)

    @property
    def files(self) -> dict[str, str]:
        """The file of each split."""
        names = ("train.tsv", "dev.tsv") if self.model == "bert" else ("train.parquet", "test.parquet")
        return {split: str(Path(self.data) / name) for split, name in zip(("train", "eval"), names, strict=True)}


@dataclass(frozen=True, kw_only=True)
class Result:
    """The measurements of one run. A run that learns nothing, like the limit, has no losses and no evaluation."""

    train_s: float  # the complete loop over all epochs, with the first step, without evaluation
    first_step_s: float  # the part of train_s until the end of step 1
    startup_s: float  # from the start of rank 0's process to the end of step 1
    steps: int
    examples: int  # over all ranks
    train_loss: float | None  # mean over all steps
    eval_loss: float | None
    eval_accuracy: float | None  # share of 1
    eval_examples: int | None

    @property
    def samples_per_s(self) -> float:
        """All examples of the run divided by its total time."""
        return self.examples / self.train_s


def load(kind: type[Any], path: Path) -> Any:
    """Reads a `Work` or a `Result` from its file."""
    return kind(**json.loads(path.read_text(encoding="utf-8")))


def save(value: Work | Result, path: Path) -> None:
    """Writes a `Work` or a `Result` as JSON."""
    path.write_text(json.dumps(dataclasses.asdict(value), indent=1) + "\n", encoding="utf-8")


def process_start_s(pid: int) -> float:
    """The start time of a running process, in seconds since 1970, exact to 10 ms.

    Field 22 of /proc/<pid>/stat (proc(5)) has the ticks since boot. The boot time in /proc/stat has only full seconds,
    so the clock that counts from boot is used instead.
    """
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    age_s = time.clock_gettime(time.CLOCK_BOOTTIME) - int(fields[19]) / os.sysconf("SC_CLK_TCK")
    return time.time() - age_s
