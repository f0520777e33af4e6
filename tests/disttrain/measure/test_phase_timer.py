"""Phases add up to the step; time between steps is left out."""

from __future__ import annotations

import time

import pytest
import torch

from disttrain.measure.phase_timer import PhaseTimer


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
