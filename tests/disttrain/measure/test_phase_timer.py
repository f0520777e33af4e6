"""Phases add up to the step; time between steps is left out."""

from __future__ import annotations

import time

import pytest
import torch

from disttrain.measure.phase_timer import PhaseTimer
from tests.fakecuda.install import fake_cuda


def test_laps_add_up_without_the_pause() -> None:
    timer = PhaseTimer(torch.device("cpu"))
    for _ in range(2):
        time.sleep(0.5)
        timer.restart()
        for _ in range(2):
            timer.lap("data")
            time.sleep(0.01)
            timer.lap("forward")
        timer.end_step()
    first, second = timer.read()
    assert timer.read() == []
    for step in (first.times, second.times):
        assert step.forward_ms >= 20
        assert step.backward_ms == 0
        assert step.step_ms == pytest.approx(step.data_ms + step.forward_ms)
        assert step.step_ms < 500


def time_steps(timer: PhaseTimer, steps: int) -> None:
    for _ in range(steps):
        timer.lap("data")
        timer.lap("forward")
        bucket = timer.bucket_ready(4)
        bucket.done = timer.mark()
        timer.lap("backward")
        timer.end_step()


def test_events_are_reused_only_after_reading() -> None:
    with fake_cuda() as gpus:
        timer = PhaseTimer(torch.device("cuda", 0))
        time_steps(timer, 3)
        made = gpus.events_made
        assert made == 1 + 3 * 5, "no event of an unread step is reused"
        read = timer.read()
        assert len(read) == 3
        for _ in range(4):
            time_steps(timer, 3)
            again = timer.read()
            assert all(0 <= step.times.step_ms < 1000 for step in again)
            starts = [step.times.start_s or 0.0 for step in again]
            assert starts == sorted(starts)
            assert min(starts) > 0
        assert gpus.events_made == made + 1, "the event of the reading"


def test_a_discarded_lap_frees_its_events() -> None:
    with fake_cuda() as gpus:
        timer = PhaseTimer(torch.device("cuda", 0))
        time_steps(timer, 1)  # not read: its last event is also the start of the next lap
        for _ in range(5):
            timer.lap("data")
            timer.restart()
        assert gpus.events_made == 1 + 5 + 3
        time_steps(timer, 1)
        first, second = timer.read()
        assert first.times.start_s is not None
        assert second.times.start_s is not None
        assert first.times.start_s < second.times.start_s
        assert min(first.times.data_ms, second.times.data_ms) >= 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_gpu_times_are_device_times() -> None:
    timer = PhaseTimer(torch.device("cuda"))
    matrix = torch.rand(4096, 4096, device="cuda")
    timer.restart()
    for _ in range(10):
        matrix = matrix @ matrix
    timer.lap("forward")
    timer.end_step()
    assert timer.read()[0].times.forward_ms > 1
