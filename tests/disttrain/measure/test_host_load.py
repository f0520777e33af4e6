"""The load of the test process and its children, which do a known amount of work."""

from __future__ import annotations

import multiprocessing
import os
import time
from multiprocessing.synchronize import Event

import psutil
import pytest

from disttrain.measure.host_load import Host, cpu_s


def compute(seconds: float) -> None:
    until = time.process_time() + seconds
    while time.process_time() < until:
        sum(range(1000))


def compute_and_wait(seconds: float, done: Event, end: Event) -> None:
    compute(seconds)
    done.set()
    end.wait()


def used_s() -> float:
    used = cpu_s()
    assert used is not None
    return used


@pytest.mark.process
def test_a_worker_counts_before_and_after_its_end() -> None:
    context = multiprocessing.get_context("fork")
    done, end = context.Event(), context.Event()
    before = used_s()
    worker = context.Process(target=compute_and_wait, args=(0.3, done, end))
    worker.start()
    done.wait()
    alive_s = used_s() - before
    end.set()
    worker.join()
    ended_s = used_s() - before
    assert alive_s >= 0.28
    assert alive_s - 0.02 <= ended_s < alive_s + 0.28


def test_the_first_reading_has_no_cpu_load() -> None:
    host, began = Host(), time.monotonic()
    first = host.read()
    assert first.process_cpu_percent is first.host_cpu_percent is None
    compute(0.2)
    second = host.read()
    assert second.process_cpu_percent is not None
    assert second.process_cpu_percent >= 19 / (time.monotonic() - began)  # 0.2 s, less one tick of the CPU clock
    assert second.host_cpu_percent is not None
    assert 0 < second.host_cpu_percent <= 100


def test_memory_of_process_and_host() -> None:
    state = Host().read()
    assert state.process_memory_mib == pytest.approx(psutil.Process(os.getpid()).memory_info().rss / 2**20, rel=0.1)
    assert state.process_memory_mib < state.host_memory_used_mib < psutil.virtual_memory().total / 2**20
