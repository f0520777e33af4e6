"""The sources of the figures in records and results: the last column of docs/records.md."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Source:
    """The source of a figure."""

    text: str


CONFIG = Source("the run's config")
SUBMISSION = Source("the submission")
PLACE = Source("the launcher's environment (disttrain.environment.rank_env)")
DATA = Source("the run's data")
LOOP = Source("counted by the program")
SCRIPT = Source("the lines that the script appends to `$SWEEP_METRICS`")
LINKS = Source("the link records")
WALL = Source("`time.time()`")
HOST_CLOCK = Source("`time.perf_counter()`")
PROCESS = Source("`/proc/self/stat` and the monotonic clock")
# The clock of the device that does the work, because the host runs ahead of a GPU.
DEVICE_CLOCK = Source("GPU: CUDA events in the stream; CPU: `time.perf_counter()`")
HOOK = Source("time marks in DDP's communication hook, on the device's clock")
DDP_LOGGER = Source("DDP's built-in logger")
TORCH = Source("torch")
SYSTEM = Source("the operating system")
EXCEPTION = Source("the exception")
STACKS = Source("the stack of the main thread")
FLIGHT = Source("torch's flight recorder")
PACKAGES = Source("the installed packages")
STEPS = Source("the step records")
STARTS = Source("the start records")
RANKS = Source("the step records of all ranks")
CHECKS = Source("host clocks of all ranks")
NVML = Source("NVML")
PSUTIL = Source("psutil")
TRANSPORT = Source("the backend, NCCL's variables and `/sys/class/infiniband`")
