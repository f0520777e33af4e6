"""The cost of one call of each measuring part, in microseconds, with nothing else running."""

from __future__ import annotations

import itertools
import multiprocessing
import statistics
import time
from collections.abc import Callable
from multiprocessing.queues import SimpleQueue
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

from disttrain.config.train_config import TrainConfig
from disttrain.data.batches import BEGINNING, RankStep
from disttrain.distributed.group import Group
from disttrain.environment.rank_env import RankEnv
from disttrain.environment.stop_signals import StopSignals
from disttrain.measure.phase_timer import PhaseTimer, StepPhase
from disttrain.measure.startup import Startup
from disttrain.measure.telemetry import Sampler
from disttrain.records.record_files import RecordWriter, encode
from disttrain.training import stop_agreement
from disttrain.training.ddp import wrap_ddp
from disttrain.training.step_writer import StepWriter
from disttrain.training.stop_agreement import StopAgreement

CPU = torch.device("cpu")
PHASES: tuple[StepPhase, ...] = ("data", "forward", "backward", "optimizer")
_FAST_CALLS, _SLOW_CALLS = 10_000, 200  # number of repetitions
_PAIRS, _LAYERS, _WIDTH = 40, 40, 256  # size of the passes in which the hook is measured


def lap_us() -> float:
    """The cost of one lap of the timer."""
    timer = PhaseTimer(CPU)
    return _per_call_us(lambda: timer.lap("forward"), _FAST_CALLS)


def end_step_us() -> float:
    """The cost of the end of a step."""
    return _per_call_us(PhaseTimer(CPU).end_step, _FAST_CALLS)


def sample_us() -> float:
    """The cost of one sample on a rank without a GPU, and of encoding its record."""
    sampler = Sampler(1.0, None)
    return _per_call_us(lambda: encode(sampler.sample()), _SLOW_CALLS)


def record_us(folder: Path, steps: int, buckets: int) -> float:
    """The cost of one step's records, from reading its times to handing its lines to the operating system.

    Args:
        folder: The folder for the file.
        steps: The number of steps that are written together.
        buckets: The number of measured buckets in each step.
    """
    per_step = []
    for _ in range(max(3, _SLOW_CALLS // steps)):
        timer = _timer_with_steps(steps, buckets)
        losses = [torch.ones(()) for _ in range(steps)]
        with RecordWriter(folder / "records.jsonl") as writer:
            step_writer = StepWriter(writer, timer, steps, Startup(0.0, 0.0), lambda line: None, list)
            began = time.perf_counter()
            for number, loss in enumerate(losses, start=1):
                step_writer.add(RankStep(number, 0, False, (), 16, 32, BEGINNING), 1e-5, loss)
            step_writer.flush()
            per_step.append((time.perf_counter() - began) / steps)
    return statistics.median(per_step) * 1e6


def _timer_with_steps(steps: int, buckets: int) -> PhaseTimer:
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
    """The cost of measuring one bucket in a real backward pass: DDP's call of Python, the hook, and its two marks.

    The process group has one rank, so no wait for another rank can hide this cost.
    """
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        plain, timed = _WrappedModel(detailed_timing=False), _WrappedModel(detailed_timing=True)
        times: dict[_WrappedModel, list[float]] = {plain: [], timed: []}
        for number in range(_PAIRS):
            for model in (plain, timed) if number % 2 else (timed, plain):
                times[model].append(model.backward_s())
        added_s = [with_hook - without for with_hook, without in zip(times[timed], times[plain], strict=True)]
        return statistics.median(added_s) / timed.buckets() * 1e6
    finally:
        dist.destroy_process_group()


def stop_check_us() -> float:
    """The cost of one check for stop signals, an all-reduce between two ranks on this host."""
    context = multiprocessing.get_context("spawn")
    results: SimpleQueue[float] = context.SimpleQueue()
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    ranks = [context.Process(target=_check_for_stop, args=(rank, store.port, results)) for rank in range(2)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join()
    return results.get()


def _check_for_stop(rank: int, port: int, results: SimpleQueue[float]) -> None:
    store = dist.TCPStore("127.0.0.1", port, wait_for_workers=False)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
    stop_agreement.CHECK_EVERY_S = 0.0  # so that it checks after each step
    steps = itertools.count(1)
    group = Group(RankEnv(rank=rank, world_size=2, local_world_size=2), CPU, "gloo", ("localhost",) * 2, False)
    agreement = StopAgreement(StopSignals(), group, 0)
    cost_us = _per_call_us(lambda: agreement.cause(next(steps)), _SLOW_CALLS)
    if rank == 0:
        results.put(cost_us)
    dist.destroy_process_group()


class _WrappedModel:
    """A stack of layers in DDP's wrapper, with almost one bucket for each layer."""

    def __init__(self, *, detailed_timing: bool) -> None:
        group = Group(RankEnv(), CPU, "gloo", ("localhost",), False)
        config = TrainConfig(model="bert", bucket_cap_mb=0.25, detailed_timing=detailed_timing, device="cpu")
        model = nn.Sequential(*(nn.Linear(_WIDTH, _WIDTH) for _ in range(_LAYERS)))
        self._timer = PhaseTimer(CPU)
        self._ddp_model = wrap_ddp(model, group, config, self._timer)
        for _ in range(3):  # DDP orders its buckets in the first pass
            self.backward_s()
        self._timer.read()

    def backward_s(self) -> float:
        self._timer.restart()
        loss = self._ddp_model(torch.ones(1, _WIDTH)).sum()
        began = time.perf_counter()
        loss.backward()
        backward_s = time.perf_counter() - began
        self._timer.lap("backward")
        self._timer.end_step()
        return backward_s

    def buckets(self) -> int:
        exchange = self._timer.read()[-1].exchange
        assert exchange is not None
        return len(exchange.bucket_bytes)


def _per_call_us(call: Callable[[], object], calls: int) -> float:
    began = time.perf_counter()
    for _ in range(calls):
        call()
    return (time.perf_counter() - began) / calls * 1e6
