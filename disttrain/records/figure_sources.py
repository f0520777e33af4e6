"""Where the figures of records and results come from: what docs/records.md has in its last column."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Source:
    """Where a figure comes from."""

    text: str


CONFIG = Source("the run's config")
PLACE = Source("environment of the launcher (disttrain.environment.rank_env)")
DATA = Source("the data of the run")
LOOP = Source("counted by the loop")
LINKS = Source("the link records")
WALL = Source("`time.time()`")
HOST_CLOCK = Source("`time.perf_counter()`")
# The clock that the work itself is timed by: it runs on while the host goes ahead.
DEVICE_CLOCK = Source("CUDA events in the stream; on a CPU `time.perf_counter()`")
HOOK = Source("marks in DDP's communication hook, by the device's clock")
DDP_LOGGER = Source("DDP's own logger")
TORCH = Source("torch")
SYSTEM = Source("the operating system")
STEPS = Source("the step records")
RANKS = Source("the step records of all ranks")
CHECKS = Source("host clocks of all ranks")
EVALS = Source("the last evaluation")
NVML = Source("NVML")
PSUTIL = Source("psutil")
