"""How long the phases of a training step take, and the exchange within them, on the device's own clock."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Literal

import torch

from disttrain.analysis.comm_overlap import Exchange

StepPhase = Literal["data", "forward", "backward", "optimizer"]
Mark = float | torch.cuda.Event


@dataclass(frozen=True)
class StepTimes:
    """One optimizer step, its forward passes summed over gradient accumulation; milliseconds."""

    start_s: float  # on the host's monotonic clock
    data_ms: float
    forward_ms: float
    backward_ms: float  # the exchange that it waits for included
    optimizer_ms: float
    exposed_comm_ms: float | None = None  # of the backward pass; None: the exchange is not watched
    overlapped_comm_ms: float | None = None  # beside the backward pass
    exchange: Exchange | None = None

    @property
    def step_ms(self) -> float:
        """The whole step: its phases leave no gap between them."""
        return self.data_ms + self.forward_ms + self.backward_ms + self.optimizer_ms


@dataclass
class BucketMarks:
    """One bucket on its way; `done` is set by another thread."""

    size_bytes: int
    ready: Mark
    done: Mark | None = None


@dataclass(frozen=True)
class _Step:
    laps: list[tuple[StepPhase, Mark, Mark]]
    buckets: list[BucketMarks]


class PhaseTimer:
    """A stopwatch that never makes the host wait for the GPU.

    On a GPU a lap only puts an event into the stream; the times between events are known later, and `read` waits for
    the last of them. On a CPU a lap reads the clock.

    Args:
        device: Of the rank.
        alone: There is no other rank, so that no time goes into an exchange.
    """

    def __init__(self, device: torch.device, alone: bool = False) -> None:
        self._device = device
        self._alone = alone
        self._laps: list[tuple[StepPhase, Mark, Mark]] = []
        self._buckets: list[BucketMarks] = []
        self._steps: list[_Step] = []
        self._last = self.mark()

    def restart(self) -> None:
        """Leaves out what came since the last step: an evaluation, or a pass that settles DDP's buckets."""
        self._laps, self._buckets = [], []
        self._last = self.mark()

    def lap(self, phase: StepPhase) -> None:
        """The time since the last lap belongs to this phase."""
        now = self.mark()
        self._laps.append((phase, self._last, now))
        self._last = now

    def bucket_ready(self, size_bytes: int) -> BucketMarks:
        """Notes that a bucket's exchange begins; whoever knows its end marks it."""
        bucket = BucketMarks(size_bytes, self.mark())
        self._buckets.append(bucket)
        return bucket

    def end_step(self) -> None:
        self._steps.append(_Step(self._laps, self._buckets))
        self._laps, self._buckets = [], []

    def read(self) -> list[StepTimes]:
        """The steps that ended since the last reading; waits for a GPU to reach the end of the last one."""
        steps, self._steps = self._steps, []
        if not steps:
            return []
        now = self.mark()
        if isinstance(now, torch.cuda.Event):
            now.synchronize()
        now_s = now if isinstance(now, float) else time.perf_counter()
        return [self._step_times(step, now, now_s) for step in steps]

    def mark(self) -> Mark:
        """This moment, in the current stream of a GPU."""
        if self._device.type != "cuda":
            return time.perf_counter()
        event: torch.cuda.Event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(self._device))  # in a thread of gloo's another device is the current one
        return event

    def _step_times(self, step: _Step, now: Mark, now_s: float) -> StepTimes:
        """Its times, told from a moment after it on both clocks: of hours a GPU's event would tell milliseconds."""
        sums: dict[StepPhase, float] = {"data": 0.0, "forward": 0.0, "backward": 0.0, "optimizer": 0.0}
        for phase, start, end in step.laps:
            sums[phase] += _elapsed_ms(start, end)
        begin = step.laps[0][1]
        exchange = None
        exposed = hidden = 0.0 if self._alone else None
        if step.buckets:
            exchange = _exchange(begin, step.buckets)
            backward_end = [end for phase, _, end in step.laps if phase == "backward"][-1]
            exposed = exchange.exposed_comm_ms(_elapsed_ms(begin, backward_end))
            hidden = exchange.overlapped_comm_ms()
        return StepTimes(
            start_s=now_s - _elapsed_ms(begin, now) / 1000,
            data_ms=sums["data"],
            forward_ms=sums["forward"],
            backward_ms=sums["backward"],
            optimizer_ms=sums["optimizer"],
            exposed_comm_ms=exposed,
            overlapped_comm_ms=hidden,
            exchange=exchange,
        )


def _exchange(begin: Mark, buckets: list[BucketMarks]) -> Exchange:
    # The backward pass has waited for every bucket: all are marked.
    return Exchange(
        bucket_bytes=tuple(bucket.size_bytes for bucket in buckets),
        ready_ms=tuple(_elapsed_ms(begin, bucket.ready) for bucket in buckets),
        done_ms=tuple(_elapsed_ms(begin, bucket.done) for bucket in buckets if bucket.done is not None),
    )


def _elapsed_ms(start: Mark, end: Mark) -> float:
    if isinstance(start, torch.cuda.Event):
        assert isinstance(end, torch.cuda.Event)
        return float(start.elapsed_time(end))
    assert isinstance(end, float)
    return (end - start) * 1000
