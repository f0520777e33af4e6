"""A submitted sweep whose runs have records, as ranks write them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from jobs.storage.sweep_folder import SweepFolder

START_S, CLOCK_S = 1_800_000_000.0, 50.0


def start(first_step: int = 1) -> dict[str, Any]:
    """A start record."""
    return {
        "kind": "start", "time_s": START_S, "rank": 0, "world_size": 1, "local_rank": 0, "node_rank": 0, "host": "n1",
        "pid": 1, "job_id": "1", "restart_count": 0, "first_step": first_step, "device": "cpu", "device_name": "cpu",
        "backend": None, "shared_gpu": False, "folded": False, "threads": 1, "versions": {}, "parameters": 1,
        "train_examples": 4, "eval_examples": 4, "notices": [],
    }  # fmt: skip


def step(number: int, loss: float | None = None) -> dict[str, Any]:
    """A step record of 100 ms, with 4 examples."""
    return {
        "kind": "step", "step": number, "epoch": 0, "loss": 1 / number if loss is None else loss, "lr": 0.5,
        "examples": 4, "start_s": CLOCK_S + 0.1 * (number - 1), "data_ms": 10.0, "forward_ms": 20.0,
        "backward_ms": 60.0, "optimizer_ms": 10.0, "step_ms": 100.0,
    }  # fmt: skip


EVAL = {"kind": "eval", "step": 3, "loss": 0.25, "accuracy": 0.75, "macro_f1": None, "examples": 8, "elapsed_s": 0.1}
SAMPLE = {"kind": "telemetry", "time_s": START_S + 1, "host_cpu_percent": 40.0, "gpu_throttle": None}


def three_steps() -> list[dict[str, Any]]:
    """The records of a short run."""
    return [start(), step(1), step(2), step(3), EVAL, SAMPLE]


def append(file: Path, records: list[dict[str, Any]]) -> Path:
    """Appends records to a file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a", encoding="utf-8") as lines:
        lines.writelines(json.dumps(record) + "\n" for record in records)
    return file


def records_file(folder: SweepFolder, index: int = 0) -> Path:
    """The records of rank 0 of a run."""
    return folder.run(folder.planned_runs()[index]["run_id"]) / "metrics-rank00000.jsonl"
