"""Records some steps with torch.profiler: a second source for what a step does, independent of our own times."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from disttrain.config.train_config import TrainConfig


def profile_name(rank: int) -> str:
    """The file name of one rank's trace.

    Example:
        >>> profile_name(3)
        'profile-rank00003.json.gz'
    """
    return f"profile-rank{rank:05d}.json.gz"


class StepProfiler:
    """Records the first `profile_steps` steps after the warm-up. A run that resumes later has them already.

    Args:
        path: The file of the trace, which torch compresses for its ending.
        first: The first step that is recorded.
        count: The number of steps; 0 records none.
    """

    def __init__(self, path: Path = Path(), first: int = 1, count: int = 0) -> None:
        self._path = path
        self._steps = range(first, first + count)
        self._profile: Any = None

    @classmethod
    def of(cls, config: TrainConfig, rank: int, folder: Path) -> StepProfiler:
        """The profiler of a rank, whose trace is in the folder of the run."""
        return cls(folder / profile_name(rank), config.timing_warmup_steps + 1, config.profile_steps)

    @property
    def is_on(self) -> bool:
        """Whether a step is recorded now."""
        return self._profile is not None

    def before(self, step: int, restart_timer: Callable[[], None]) -> None:
        """Starts if the step is to be recorded; the start counts to no step."""
        if self.is_on or step not in self._steps:
            return
        activities = [ProfilerActivity.CPU]
        if torch.cuda.is_available():
            activities.append(ProfilerActivity.CUDA)
        self._profile = profile(activities=activities)
        self._profile.start()
        restart_timer()

    def after(self, step: int, restart_timer: Callable[[], None]) -> None:
        """Stops after the last step, and writes the trace; this counts to no step."""
        if self.is_on and step + 1 not in self._steps:
            self.close()
            restart_timer()

    def close(self) -> None:
        """Stops and writes the trace, if it still records. A trace never has a part of its file."""
        if self._profile is None:
            return
        stopped, self._profile = self._profile, None
        stopped.stop()
        temporary = self._path.with_name(f".{self._path.name}")
        stopped.export_chrome_trace(str(temporary))
        os.replace(temporary, self._path)
