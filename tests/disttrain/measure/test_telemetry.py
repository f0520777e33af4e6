"""Samples of a scripted GPU and of the test process."""

from __future__ import annotations

import dataclasses
import time

import pytest

from disttrain.measure import telemetry
from disttrain.measure.nvml import GpuState, open_gpu
from disttrain.measure.telemetry import Energy, Sampler, open_sampler
from disttrain.records.record_types import TelemetryRecord
from tests.disttrain.scriptednvml import ALL_FIGURES, GPU_IS_LOST, script_nvml

COUNTER = "nvmlDeviceGetTotalEnergyConsumption"


def test_energy_comes_from_counter_or_power() -> None:
    counter = Energy()
    readings = [
        counter.add(at, GpuState(energy_counter_j=value, power_w=1.0)) for at, value in ((0.0, 500.0), (5.0, 900.0))
    ]
    assert (readings, counter.source) == ([0.0, 400.0], "counter")
    power = Energy()
    readings = [power.add(at, GpuState(power_w=value)) for at, value in ((0.0, 100.0), (2.0, 300.0), (3.0, 300.0))]
    assert (readings, power.source) == ([0.0, 400.0, 700.0], "power")
    assert Energy().add(0.0, GpuState()) is None


def test_the_energy_method_never_changes() -> None:
    counter = Energy()
    counter.add(0.0, GpuState(energy_counter_j=500.0, power_w=100.0))
    assert counter.add(1.0, GpuState(power_w=100.0)) is None
    assert counter.add(2.0, GpuState(energy_counter_j=700.0, power_w=100.0)) == 200.0
    power = Energy()
    power.add(0.0, GpuState(power_w=100.0))
    assert power.add(1.0, GpuState(power_w=100.0, energy_counter_j=500.0)) == 100.0
    assert power.add(2.0, GpuState()) is None
    assert (power.add(4.0, GpuState(power_w=100.0)), power.source) == (400.0, "power")


def test_linear_power_gives_the_counter_energy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Through pynvml: 100 W, rising by 20 W per second; the counter is the integral."""
    library = script_nvml(monkeypatch, ALL_FIGURES)
    gpu, _ = open_gpu("1")
    assert gpu is not None
    counter, power = Energy(), Energy()
    for second in range(11):
        library.answers["nvmlDeviceGetPowerUsage"] = 100_000 + 20_000 * second
        library.answers[COUNTER] = 10**9 + 100_000 * second + 10_000 * second**2
        state = gpu.read()
        counter_j = counter.add(float(second), state)
        power_j = power.add(float(second), dataclasses.replace(state, energy_counter_j=None))
    assert power_j == pytest.approx(2000.0)
    assert counter_j == pytest.approx(2000.0)
    assert (counter.source, power.source) == ("counter", "power")


def test_without_a_gpu_only_its_figures_are_empty() -> None:
    sampler, notices = open_sampler(0.05, None)
    with sampler:
        time.sleep(0.2)
    samples = sampler.taken()
    assert notices == ()
    assert len(samples) >= 3
    for name, value in vars(samples[-1]).items():
        assert (value is None) == (name.startswith("gpu_") or name == "error"), name
    assert sampler.taken() == []


def test_first_and_last_sample_ignore_the_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    library = script_nvml(monkeypatch, ALL_FIGURES)
    sampler, _ = open_sampler(3600.0, "1")
    with sampler:
        pass
    first, last = sampler.taken()
    assert (first.gpu_util_percent, first.gpu_energy_j) == (73.0, 0.0)
    assert last.gpu_energy_source == "counter"
    assert library.opened == 0


def test_a_lost_gpu_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    """The host is still sampled."""
    library = script_nvml(monkeypatch, ALL_FIGURES)
    gpu, _ = open_gpu("1")
    sampler = Sampler(1.0, gpu)
    assert sampler.sample().error is None
    library.answers.update(dict.fromkeys(ALL_FIGURES, GPU_IS_LOST))
    sample = sampler.sample()
    assert sample.gpu_memory_used_mib is sample.gpu_energy_j is None
    assert sample.process_memory_mib is not None
    assert sample.error is not None
    assert sample.error.endswith("GPU is lost")


def test_an_error_does_not_stop_sampling(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        def read(self) -> None:
            raise ValueError("nonsense in /proc")

    monkeypatch.setattr(telemetry, "Host", Broken)
    sampler = Sampler(0.01, None)
    with sampler:
        time.sleep(0.05)
    samples = sampler.taken()
    assert len(samples) >= 3
    for sample in samples:
        assert sample == TelemetryRecord(time_s=sample.time_s, error="ValueError: nonsense in /proc")


def test_an_unknown_gpu_gives_a_notice(monkeypatch: pytest.MonkeyPatch) -> None:
    script_nvml(monkeypatch, ALL_FIGURES, uuid="GPU-2")
    sampler, notices = open_sampler(1.0, "1")
    assert notices == ("GPU telemetry is empty: NVML reports 'Not Found'",)
    assert sampler.sample().process_memory_mib is not None


def test_interval_zero_takes_no_sample() -> None:
    sampler, notices = open_sampler(0.0, "1")
    with sampler:
        pass
    assert sampler.taken() == []
    assert notices == ()
