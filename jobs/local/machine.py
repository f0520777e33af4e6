"""What this machine can carry: its cores and GPUs, and where on them a run can start."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class QueuedRun:
    """One run as the queue sees it."""

    run_id: str
    job_id: str
    nodes: int
    gpus_per_node: int
    on_cpu: bool  # device: cpu

    @property
    def world_size(self) -> int:
        return self.nodes * self.gpus_per_node


@dataclass(frozen=True)
class Machine:
    """What this machine can carry."""

    cores: int
    gpus: tuple[str, ...]  # as in CUDA_VISIBLE_DEVICES


@dataclass(frozen=True)
class Placement:
    """Where one run goes."""

    visible_gpus: str
    threads: int  # of each rank


def this_machine(environ: Mapping[str, str]) -> Machine:
    """Cores that this process may use, and the GPUs that CUDA_VISIBLE_DEVICES leaves of those of the machine."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    shown = environ.get("CUDA_VISIBLE_DEVICES")
    if shown is not None:
        return Machine(cores, tuple(gpu for gpu in shown.split(",") if gpu not in ("", "-1", "NoDevFiles")))
    if shutil.which("nvidia-smi") is None:
        return Machine(cores, ())
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False, timeout=60)
    count = sum(line.startswith("GPU ") for line in listed.stdout.splitlines()) if listed.returncode == 0 else 0
    return Machine(cores, tuple(str(index) for index in range(count)))


def place(
    run: QueuedRun, running: Sequence[tuple[QueuedRun, Placement]], machine: Machine, max_ranks: int | None
) -> Placement | None:
    """Where the run can start now; None while it has to wait.

    Never more ranks at once than GPUs, or for runs without one than cores; a run that is larger than the machine waits
    until it is alone, and its ranks then share.

    Args:
        run: The next of the queue.
        running: What runs, with its placement.
        machine: What there is.
        max_ranks: Ranks at once, instead of the number of GPUs or cores.
    """
    uses_gpu = bool(machine.gpus) and not run.on_cpu
    rivals = [(other, spot) for other, spot in running if max_ranks or bool(spot.visible_gpus) == uses_gpu]
    capacity = max_ranks or (len(machine.gpus) if uses_gpu else machine.cores)
    busy = sum(other.world_size for other, _ in rivals)
    if rivals and busy + run.world_size > capacity:
        return None
    threads = max(1, machine.cores // max(capacity, run.world_size))
    if not uses_gpu:
        return Placement("", threads)
    # The least used first: with --max-parallel above their number they are shared.
    use = {gpu: sum(gpu in spot.visible_gpus.split(",") for _, spot in rivals) for gpu in machine.gpus}
    chosen = sorted(machine.gpus, key=lambda gpu: (use[gpu], machine.gpus.index(gpu)))[: run.world_size]
    return Placement(",".join(chosen), threads)
