"""The cores and GPUs of this machine, and the placement of runs on them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from disttrain.errors import UserError

# A line of nvidia-smi -L. The lines of MIG slices are indented.
_LISTED_GPU = re.compile(r"^GPU (?:(?P<index>\d+): (?P<model>.+?) \(UUID: (?P<uuid>[^)]+)\))?.*$", re.MULTILINE)


@dataclass(frozen=True)
class QueuedRun:
    """One run in the queue."""

    run_id: str
    job_id: str
    nodes: int
    gpus_per_node: int
    on_cpu: bool  # whether its config says device: cpu
    by_node: bool = False  # whether each node has one process, which starts the ranks
    is_script: bool = False  # whether its ranks run the user's own script

    @property
    def world_size(self) -> int:
        return self.nodes * self.gpus_per_node

    @property
    def tasks(self) -> int:
        """The number of processes that the queue starts."""
        if self.by_node:
            return self.nodes
        return self.world_size


@dataclass(frozen=True)
class Machine:
    """The cores and GPUs of a machine that runs may use."""

    cores: int
    gpus: tuple[str, ...]  # the names that CUDA_VISIBLE_DEVICES uses


@dataclass(frozen=True)
class Placement:
    """The GPUs and threads of one run."""

    visible_gpus: str  # the value of CUDA_VISIBLE_DEVICES
    threads: int  # the number of threads of each rank


def this_machine(environ: Mapping[str, str]) -> Machine:
    """The cores that this process may use, and the GPUs; CUDA_VISIBLE_DEVICES limits these if it is set."""
    visible = environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return Machine(_core_count(), tuple(gpu for gpu in visible.split(",") if gpu not in ("", "-1", "NoDevFiles")))
    return Machine(_core_count(), tuple(str(index) for index in range(_gpu_count())))


def _core_count() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _gpu_count() -> int:
    return len(_listed_gpus())


def gpu_model(gpu: str) -> str | None:
    """The model of a GPU, by its name in CUDA_VISIBLE_DEVICES: its number or UUID; None if it is not known."""
    for match in _listed_gpus():
        if gpu in (match["index"], match["uuid"]):
            return match["model"]
    return None


def _listed_gpus() -> list[re.Match[str]]:
    """The GPUs that the driver lists."""
    if shutil.which("nvidia-smi") is None:
        return []
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False, timeout=60)
    if listed.returncode != 0:
        return []
    return list(_LISTED_GPU.finditer(listed.stdout))


def require_gpus(run: QueuedRun, machine: Machine) -> None:
    """Checks that each rank of a script finds a GPU: ranks of our models share GPUs, a script uses its LOCAL_RANK.

    Raises:
        UserError: The machine has GPUs, but fewer than the run has ranks.
    """
    if run.is_script and 0 < len(machine.gpus) < run.world_size:
        message = f"{run.nodes}x{run.gpus_per_node} needs {run.world_size} GPUs, and this machine has"
        hint = "choose a smaller allocation; for a script that uses no GPU: CUDA_VISIBLE_DEVICES= sweep submit"
        raise UserError(f"{message} {len(machine.gpus)}: a script does not share GPUs between its ranks", hint=hint)


def place(
    run: QueuedRun, running: Sequence[tuple[QueuedRun, Placement]], machine: Machine, max_ranks: int | None
) -> Placement | None:
    """The place where the run can start now; None while it has to wait.

    The number of simultaneous ranks is at most the number of GPUs; for runs without a GPU, the number of cores. A run
    that is larger than the machine waits until it is alone. Its ranks then share the GPUs or cores.

    Args:
        run: The next run of the queue.
        running: The runs that run now, with their placements.
        machine: The cores and GPUs of the machine.
        max_ranks: The number of ranks at a time, instead of the number of GPUs or cores.
    """
    uses_gpu = bool(machine.gpus) and not run.on_cpu
    rivals = [(other, used) for other, used in running if max_ranks or bool(used.visible_gpus) == uses_gpu]
    capacity = machine.cores
    if uses_gpu:
        capacity = len(machine.gpus)
    if max_ranks:
        capacity = max_ranks
    busy = sum(other.world_size for other, _ in rivals)
    if rivals and busy + run.world_size > capacity:
        return None
    threads = max(1, machine.cores // max(capacity, run.world_size))
    if not uses_gpu:
        return Placement("", threads)
    # The least used GPUs come first: if --max-parallel is larger than the number of GPUs, runs share them.
    runs_on = {gpu: sum(gpu in used.visible_gpus.split(",") for _, used in rivals) for gpu in machine.gpus}
    chosen = sorted(machine.gpus, key=lambda gpu: (runs_on[gpu], machine.gpus.index(gpu)))[: run.world_size]
    return Placement(",".join(chosen), threads)
