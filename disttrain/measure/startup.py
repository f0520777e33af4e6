"""Measures the start of a rank: from the start of its process to the end of its imports and of its first step."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

from disttrain.records.step_types import StartupRecord, StepTimes


@dataclass(frozen=True)
class Startup:
    """The start of this process.

    Attributes:
        process_start_s: The start of the process, on the host's monotonic clock.
        import_s: The time from the start of the process to the end of the imports.
    """

    process_start_s: float
    import_s: float


def end_of_imports() -> Startup:
    """The start of this process; to be called when all imports are done."""
    age_s = process_age_s()
    return Startup(time.perf_counter() - age_s, age_s)


def process_age_s() -> float:
    """The time since this process was started, in seconds, as exact as the kernel's ticks: 0.01 s.

    psutil gives the start in time since 1970, from a boot time in whole seconds: its error would be up to 1 s.
    """
    # The name of the process is in parentheses and may contain any character; proc(5) counts the fields after it.
    fields = Path("/proc/self/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    start_s = int(fields[19]) / os.sysconf("SC_CLK_TCK")
    return time.clock_gettime(time.CLOCK_BOOTTIME) - start_s


def startup_record(startup: Startup, first_step: StepTimes | None) -> StartupRecord:
    """The startup record of this rank.

    Args:
        startup: The start of this process.
        first_step: The first step of this start; None for a run that trains nothing.
    """
    time_to_first_step_s: float | None = None
    if first_step is not None and first_step.start_s is not None:
        time_to_first_step_s = first_step.start_s + first_step.step_ms / 1000 - startup.process_start_s
    return StartupRecord(import_s=startup.import_s, time_to_first_step_s=time_to_first_step_s)
