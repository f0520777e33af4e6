"""How long the phases of a training step take, on the device's own clock."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Literal

import torch

Phase = Literal["data", "forward", "backward", "optimizer"]
Mark = float | torch.cuda.Event


@dataclass(frozen=True)
class StepTimes:
    """One optimizer step, its forward passes summed over gradient accumulation; milliseconds."""

    data_ms: float
    forward_ms: float
    backward_ms: float
    optimizer_ms: float

    @property
    def step_ms(self) -> float:
        """The whole step: its phases leave no gap between them."""
        return self.data_ms + self.forward_ms + self.backward_ms + self.optimizer_ms


class PhaseTimer:
    """A stopwatch that never makes the host wait for the GPU.

    On a GPU a lap only puts an event into the stream; the times between events are known later, and `read` waits for
    the last of them. On a CPU a lap reads the clock.
    """

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._laps: list[tuple[Phase, Mark, Mark]] = []
        self._steps: list[list[tuple[Phase, Mark, Mark]]] = []
        self._last = self._now()

    def restart(self) -> None:
        """Leaves out what came since the last lap: an evaluation belongs to no step."""
        self._last = self._now()

    def lap(self, phase: Phase) -> None:
        """The time since the last lap belongs to this phase."""
        now = self._now()
        self._laps.append((phase, self._last, now))
        self._last = now

    def end_step(self) -> None:
        self._steps.append(self._laps)
        self._laps = []

    def read(self) -> list[StepTimes]:
        """The steps that ended since the last reading; waits for a GPU to reach the end of the last one."""
        steps, self._steps = self._steps, []
        if steps and isinstance(last := steps[-1][-1][2], torch.cuda.Event):
            last.synchronize()
        return [_step_times(laps) for laps in steps]

    def _now(self) -> Mark:
        if not self._on_gpu:
            return time.perf_counter()
        event: torch.cuda.Event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event


def _step_times(laps: list[tuple[Phase, Mark, Mark]]) -> StepTimes:
    sums: dict[Phase, float] = {"data": 0.0, "forward": 0.0, "backward": 0.0, "optimizer": 0.0}
    for phase, start, end in laps:
        sums[phase] += _elapsed_ms(start, end)
    return StepTimes(sums["data"], sums["forward"], sums["backward"], sums["optimizer"])


def _elapsed_ms(start: Mark, end: Mark) -> float:
    if isinstance(start, torch.cuda.Event):
        assert isinstance(end, torch.cuda.Event)
        return float(start.elapsed_time(end))
    assert isinstance(end, float)
    return (end - start) * 1000
