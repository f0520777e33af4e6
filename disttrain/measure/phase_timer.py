"""Times the phases of a training step and its gradient exchange, on the device's own clock."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch

from disttrain.analysis.comm_overlap import Exchange
from disttrain.analysis.measured_steps import MeasuredStep
from disttrain.records.step_types import StepTimes

StepPhase = Literal["data", "forward", "backward", "optimizer"]
Mark = float | torch.cuda.Event


@dataclass
class BucketMarks:
    """The time marks of one bucket; another thread sets `done`."""

    size_bytes: int
    ready: Mark
    done: Mark | None = None


@dataclass(frozen=True)
class _Step:
    laps: list[tuple[StepPhase, Mark, Mark]]
    buckets: list[BucketMarks]

    def marks(self) -> Iterator[Mark | None]:
        for _, start, end in self.laps:
            yield from (start, end)
        for bucket in self.buckets:
            yield from (bucket.ready, bucket.done)


class PhaseTimer:
    """A stopwatch that never makes the host wait for the GPU.

    On a GPU a lap only records an event in the stream. The times between events are known later; `read` waits for the
    last event. On a CPU a lap reads the clock.

    An event that has been read is recorded again, so that later steps neither make nor destroy events. Several threads
    that make events delay each other, and an event is destroyed with a switch to its own device, in whichever thread
    drops it (torch's c10/cuda/CUDAEvent.h).

    Args:
        device: The rank's device.
        alone: Whether the run has a single rank, so that no time is spent on communication.
    """

    def __init__(self, device: torch.device, alone: bool = False) -> None:
        self._device = device
        self._alone = alone
        self._laps: list[tuple[StepPhase, Mark, Mark]] = []
        self._buckets: list[BucketMarks] = []
        self._steps: list[_Step] = []
        self._free: deque[torch.cuda.Event] = deque()  # gloo's thread takes from it too: each of its methods is atomic
        self._last = self.mark()

    def restart(self) -> None:
        """Discards the time since the last step: an evaluation, or a pass after which DDP's buckets are final."""
        discarded = _Step(self._laps, self._buckets)
        self._laps, self._buckets = [], []
        last, self._last = self._last, self.mark()
        self._reuse(discarded.marks(), last)

    def lap(self, phase: StepPhase) -> None:
        """Assigns the time since the last lap to a phase."""
        now = self.mark()
        self._laps.append((phase, self._last, now))
        self._last = now

    def bucket_ready(self, size_bytes: int) -> BucketMarks:
        """Marks the start of a bucket's exchange. The caller sets `done` in the returned marks."""
        bucket = BucketMarks(size_bytes, self.mark())
        self._buckets.append(bucket)
        return bucket

    def end_step(self) -> None:
        self._steps.append(_Step(self._laps, self._buckets))
        self._laps, self._buckets = [], []

    def read(self) -> list[MeasuredStep]:
        """The steps that ended since the last reading; on a GPU this waits for the end of the last step."""
        steps, self._steps = self._steps, []
        if not steps:
            return []
        now = self.mark()
        if isinstance(now, torch.cuda.Event):
            now.synchronize()
            now_s = time.perf_counter()
        else:
            now_s = now
        measured = [self._measured_step(step, now, now_s) for step in steps]
        self._reuse((mark for step in steps for mark in step.marks()), now)
        return measured

    def _reuse(self, marks: Iterable[Mark | None], *more: Mark) -> None:
        """Makes the events of these marks free, except those that the current step or an unread one uses."""
        used = {id(self._last)}
        for step in (*self._steps, _Step(self._laps, self._buckets)):
            used.update(map(id, step.marks()))
        for mark in (*marks, *more):
            if isinstance(mark, torch.cuda.Event) and id(mark) not in used:
                used.add(id(mark))  # the end of a lap is the start of the next one
                self._free.append(mark)

    def mark(self) -> Mark:
        """A mark of the current time; on a GPU, an event in the current stream."""
        if self._device.type != "cuda":
            return time.perf_counter()
        event = self._free_event()
        event.record(torch.cuda.current_stream(self._device))  # in a gloo thread, another device may be current
        return event

    def _free_event(self) -> torch.cuda.Event:
        try:
            return self._free.popleft()
        except IndexError:
            return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]

    def _measured_step(self, step: _Step, now: Mark, now_s: float) -> MeasuredStep:
        """Converts the events of a step to times.

        The start is relative to `now`, which is read on both clocks. CUDA event times are float32: over hours they
        only resolve milliseconds.
        """
        sums: dict[StepPhase, float] = {"data": 0.0, "forward": 0.0, "backward": 0.0, "optimizer": 0.0}
        for phase, start, end in step.laps:
            sums[phase] += _elapsed_ms(start, end)
        begin = step.laps[0][1]
        exchange = None
        exposed_comm_ms = overlapped_comm_ms = None
        if self._alone:
            exposed_comm_ms = overlapped_comm_ms = 0.0
        if step.buckets:
            exchange = _exchange(begin, step.buckets)
            backward_end = [end for phase, _, end in step.laps if phase == "backward"][-1]
            exposed_comm_ms = exchange.exposed_comm_ms(_elapsed_ms(begin, backward_end))
            overlapped_comm_ms = exchange.overlapped_comm_ms()
        times = StepTimes(
            start_s=now_s - _elapsed_ms(begin, now) / 1000,
            data_ms=sums["data"],
            forward_ms=sums["forward"],
            backward_ms=sums["backward"],
            optimizer_ms=sums["optimizer"],
            step_ms=sum(sums.values()),  # the phases leave no gap
            exposed_comm_ms=exposed_comm_ms,
            overlapped_comm_ms=overlapped_comm_ms,
        )
        return MeasuredStep(times, exchange)


def _exchange(begin: Mark, buckets: list[BucketMarks]) -> Exchange:
    # The backward pass has waited for every bucket, so `done` is set in all marks.
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
