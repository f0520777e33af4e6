"""What one call of each part that measures takes, in microseconds, with nothing else running."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

from disttrain.config.train_config import TrainConfig
from disttrain.data.batches import BEGINNING, RankStep
from disttrain.distributed.group import Group
from disttrain.environment.rank_env import RankEnv
from disttrain.measure.phase_timer import PhaseTimer, StepPhase
from disttrain.measure.telemetry import Sampler
from disttrain.records.record_files import RecordWriter, encode
from disttrain.training.ddp import wrap_ddp
from disttrain.training.step_writer import StepWriter

CPU = torch.device("cpu")
PHASES: tuple[StepPhase, ...] = ("data", "forward", "backward", "optimizer")
_MANY, _SOME = 10_000, 200
_PAIRS, _LAYERS, _WIDTH = 40, 40, 256  # of the passes that a hook is measured in


def lap_us() -> float:
    """One lap of the timer."""
    timer = PhaseTimer(CPU)
    return _per_call_us(lambda: timer.lap("forward"), _MANY)


def end_step_us() -> float:
    return _per_call_us(PhaseTimer(CPU).end_step, _MANY)


def sample_us() -> float:
    """One sample of a rank without a GPU, and its line."""
    sampler = Sampler(1.0, None)
    return _per_call_us(lambda: encode(sampler.sample()), _SOME)


def record_us(folder: Path, steps: int, buckets: int) -> float:
    """One step's records, from its times being read to its lines being with the operating system.

    Args:
        folder: For the file.
        steps: That are written at once.
        buckets: That are watched in each.
    """
    per_step = []
    for _ in range(max(3, _SOME // steps)):
        timer = _timer_of(steps, buckets)
        losses = [torch.ones(()) for _ in range(steps)]
        with RecordWriter(folder / "records.jsonl") as writer:
            log = StepWriter(writer, timer, steps, lambda line: None, list)
            began = time.perf_counter()
            for number, loss in enumerate(losses, start=1):
                log.add(RankStep(number, 0, False, (), 16, 32, BEGINNING), 1e-5, loss)
            log.flush()
            per_step.append((time.perf_counter() - began) / steps)
    return statistics.median(per_step) * 1e6


def _timer_of(steps: int, buckets: int) -> PhaseTimer:
    timer = PhaseTimer(CPU)
    for _ in range(steps):
        for phase in PHASES:
            if phase == "backward":
                for _ in range(buckets):
                    timer.bucket_ready(2**20).done = timer.mark()
            timer.lap(phase)
        timer.end_step()
    return timer


def bucket_us() -> float:
    """What watching one bucket adds to a real backward pass: DDP's way into Python, the hook, its two marks.

    In a process group of one rank, where no wait for another hides it.
    """
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        plain, watched = _Wrapped(detailed_timing=False), _Wrapped(detailed_timing=True)
        times: dict[_Wrapped, list[float]] = {plain: [], watched: []}
        for number in range(_PAIRS):
            for each in (plain, watched) if number % 2 else (watched, plain):
                times[each].append(each.backward_s())
        added_s = [with_hook - without for with_hook, without in zip(times[watched], times[plain], strict=True)]
        return statistics.median(added_s) / watched.buckets() * 1e6
    finally:
        dist.destroy_process_group()


class _Wrapped:
    """A stack of layers in DDP's wrapper, nearly one bucket to a layer."""

    def __init__(self, *, detailed_timing: bool) -> None:
        group = Group(RankEnv(), CPU, "gloo", ("here",), False)
        config = TrainConfig(model="bert", bucket_cap_mb=0.25, detailed_timing=detailed_timing, device="cpu")
        model = nn.Sequential(*(nn.Linear(_WIDTH, _WIDTH) for _ in range(_LAYERS)))
        self._timer = PhaseTimer(CPU)
        self._trained = wrap_ddp(model, group, config, self._timer)
        for _ in range(3):  # in the first DDP orders its buckets
            self.backward_s()
        self._timer.read()

    def backward_s(self) -> float:
        self._timer.restart()
        loss = self._trained(torch.ones(1, _WIDTH)).sum()
        began = time.perf_counter()
        loss.backward()
        taken_s = time.perf_counter() - began
        self._timer.lap("backward")
        self._timer.end_step()
        return taken_s

    def buckets(self) -> int:
        exchange = self._timer.read()[-1].exchange
        assert exchange is not None
        return len(exchange.bucket_bytes)


def _per_call_us(call: Callable[[], object], calls: int) -> float:
    began = time.perf_counter()
    for _ in range(calls):
        call()
    return (time.perf_counter() - began) / calls * 1e6
