"""Samples of a GPU with known answers, and of this very process."""

from __future__ import annotations

import dataclasses
import time

import pytest

from disttrain.measure import telemetry
from disttrain.measure.nvml import GpuState, open_gpu
from disttrain.measure.telemetry import Energy, Sampler, open_sampler
from disttrain.records.record_types import TelemetryRecord
from tests.disttrain.scriptednvml import GPU_IS_LOST, WHOLE, script_nvml

COUNTER = "nvmlDeviceGetTotalEnergyConsumption"


def test_energy_by_the_counter_or_else_by_power() -> None:
    counter = Energy()
    readings = [
        counter.add(at, GpuState(energy_counter_j=value, power_w=1.0)) for at, value in ((0.0, 500.0), (5.0, 900.0))
    ]
    assert (readings, counter.source) == ([0.0, 400.0], "counter")
    power = Energy()
    readings = [power.add(at, GpuState(power_w=value)) for at, value in ((0.0, 100.0), (2.0, 300.0), (3.0, 300.0))]
    assert (readings, power.source) == ([0.0, 400.0, 700.0], "power")
    assert Energy().add(0.0, GpuState()) is None


def test_one_kind_of_energy_does_not_take_the_place_of_the_other() -> None:
    counter = Energy()
    counter.add(0.0, GpuState(energy_counter_j=500.0, power_w=100.0))
    assert counter.add(1.0, GpuState(power_w=100.0)) is None
    assert counter.add(2.0, GpuState(energy_counter_j=700.0, power_w=100.0)) == 200.0
    power = Energy()
    power.add(0.0, GpuState(power_w=100.0))
    assert power.add(1.0, GpuState(power_w=100.0, energy_counter_j=500.0)) == 100.0
    assert power.add(2.0, GpuState()) is None
    assert (power.add(4.0, GpuState(power_w=100.0)), power.source) == (400.0, "power")


def test_power_that_changes_evenly_gives_the_energy_of_the_counter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Through pynvml: 100 W and 20 W more each second, whose integral is the counter."""
    library = script_nvml(monkeypatch, WHOLE)
    gpu, _ = open_gpu("1")
    assert gpu is not None
    counter, power = Energy(), Energy()
    for second in range(11):
        library.answers["nvmlDeviceGetPowerUsage"] = 100_000 + 20_000 * second
        library.answers[COUNTER] = 10**9 + 100_000 * second + 10_000 * second**2
        state = gpu.read()
        by_counter = counter.add(float(second), state)
        by_power = power.add(float(second), dataclasses.replace(state, energy_counter_j=None))
    assert by_power == pytest.approx(2000.0)
    assert by_counter == pytest.approx(2000.0)
    assert (counter.source, power.source) == ("counter", "power")


def test_without_a_gpu_its_columns_are_empty_and_the_host_s_are_not() -> None:
    sampler, notices = open_sampler(0.05, None)
    with sampler:
        time.sleep(0.2)
    samples = sampler.taken()
    assert notices == ()
    assert len(samples) >= 3
    for name, value in vars(samples[-1]).items():
        assert (value is None) == (name.startswith("gpu_") or name == "error"), name
    assert sampler.taken() == []


def test_a_first_and_a_last_sample_whatever_the_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    library = script_nvml(monkeypatch, WHOLE)
    sampler, _ = open_sampler(3600.0, "1")
    with sampler:
        pass
    first, last = sampler.taken()
    assert (first.gpu_util_percent, first.gpu_energy_j) == (73.0, 0.0)
    assert last.gpu_energy_source == "counter"
    assert library.opened == 0


def test_a_gpu_that_is_lost_is_told_and_the_host_is_still_read(monkeypatch: pytest.MonkeyPatch) -> None:
    library = script_nvml(monkeypatch, WHOLE)
    gpu, _ = open_gpu("1")
    sampler = Sampler(1.0, gpu)
    assert sampler.sample().error is None
    library.answers.update(dict.fromkeys(WHOLE, GPU_IS_LOST))
    sample = sampler.sample()
    assert sample.gpu_memory_used_mib is sample.gpu_energy_j is None
    assert sample.process_memory_mib is not None
    assert sample.error is not None
    assert sample.error.endswith("GPU is lost")


def test_whatever_goes_wrong_disturbs_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_a_gpu_that_nvml_does_not_find_is_told_and_the_host_sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    script_nvml(monkeypatch, WHOLE, uuid="GPU-2")
    sampler, notices = open_sampler(1.0, "1")
    assert notices == ("the telemetry of the GPU is empty: NVML says 'Not Found'",)
    assert sampler.sample().process_memory_mib is not None


def test_never() -> None:
    sampler, notices = open_sampler(0.0, "1")
    with sampler:
        pass
    assert sampler.taken() == []
    assert notices == ()
