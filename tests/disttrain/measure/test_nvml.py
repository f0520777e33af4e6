"""A GPU read through the installed pynvml, with a scripted library under it.

Both packages with a module pynvml must pass: `pip install --target DIR nvidia-ml-py`, then `PYTHONPATH=DIR pytest` this
file.
"""

from __future__ import annotations

import re
import sys
from typing import Any

import pynvml
import pytest

from disttrain.measure.nvml import (
    THROTTLE_REASONS,
    Gpu,
    GpuSettings,
    GpuState,
    gpu_settings,
    open_gpu,
    throttle_names,
    visible_gpus,
)
from tests.disttrain.scriptednvml import ALL_FIGURES, GPU_IS_LOST, NOT_SUPPORTED, ScriptedLibrary, script_nvml


def opened(uuid: str = "1") -> Gpu:
    gpu, error = open_gpu(uuid)
    assert error is None
    assert gpu is not None
    return gpu


def test_every_figure_is_in_its_unit(monkeypatch: pytest.MonkeyPatch) -> None:
    library = script_nvml(monkeypatch, ALL_FIGURES)
    gpu = opened()
    assert gpu.read() == GpuState(
        util_percent=73.0,
        memory_used_mib=3072.0,
        power_w=412.5,
        temperature_c=61.0,
        sm_clock_mhz=1410.0,
        memory_clock_mhz=2619.0,
        throttle=("sw_power_cap", "sw_thermal_slowdown"),
        energy_counter_j=5000.25,
    )
    assert library.opened == 1
    gpu.close()
    assert library.opened == 0


@pytest.mark.parametrize(
    ("function", "field"),
    [
        ("nvmlDeviceGetUtilizationRates", "util_percent"),
        ("nvmlDeviceGetMemoryInfo", "memory_used_mib"),
        ("nvmlDeviceGetPowerUsage", "power_w"),
        ("nvmlDeviceGetTemperature", "temperature_c"),
        ("nvmlDeviceGetCurrentClocksThrottleReasons", "throttle"),
        ("nvmlDeviceGetTotalEnergyConsumption", "energy_counter_j"),
    ],
)
@pytest.mark.parametrize("missing", [False, True], ids=["not supported", "not in the driver"])
def test_only_an_unreadable_figure_is_empty(
    function: str, field: str, missing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = script_nvml(monkeypatch, ALL_FIGURES)
    complete = opened().read()
    if missing:
        del library.answers[function]
    else:
        library.answers[function] = NOT_SUPPORTED
    monkeypatch.setattr(pynvml, "_nvmlGetFunctionPointer_cache", {})
    assert opened().read() == GpuState(**{**vars(complete), field: None})


def test_zero_is_not_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    script_nvml(
        monkeypatch,
        {
            **ALL_FIGURES,
            "nvmlDeviceGetUtilizationRates": {"gpu": 0, "memory": 0},
            "nvmlDeviceGetCurrentClocksThrottleReasons": 0,
        },
    )
    state = opened().read()
    assert (state.util_percent, state.throttle) == (0.0, ())


def test_a_mig_slice_has_only_its_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    answers: dict[str, Any] = {**dict.fromkeys(ALL_FIGURES, NOT_SUPPORTED), "nvmlDeviceGetMemoryInfo": {"used": 2**30}}
    script_nvml(monkeypatch, answers, uuid="MIG-7")
    assert opened("7").read() == GpuState(memory_used_mib=1024.0)


def test_a_figure_that_fails_later_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    library = script_nvml(monkeypatch, {**ALL_FIGURES, "nvmlDeviceGetPowerUsage": NOT_SUPPORTED})
    gpu = opened()
    assert gpu.read().error is None
    library.answers.update(dict.fromkeys(ALL_FIGURES, GPU_IS_LOST))
    failed = gpu.read()
    assert failed.error is not None
    assert re.fullmatch(r"nvml\w+: GPU is lost", failed.error)
    assert failed == GpuState(error=failed.error)
    library.answers.update(ALL_FIGURES)
    assert gpu.read().error is None


def test_missing_gpu_or_nvml_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    library = script_nvml(monkeypatch, ALL_FIGURES, uuid="GPU-2")
    assert open_gpu("1") == (None, "Not Found")
    assert library.opened == 0
    monkeypatch.setattr(pynvml, "CDLL", lambda name: (_ for _ in ()).throw(OSError(name)))
    monkeypatch.setattr(pynvml, "nvmlLib", None)
    gpu, error = open_gpu("1")
    assert gpu is None
    assert error in ("NVML Shared Library Not Found", "NVML Shared Library Not Found. ")


@pytest.mark.parametrize("version", ["570.124.06", b"570.124.06"])
def test_settings_of_a_gpu(version: str | bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = {
        "nvmlDeviceGetEnforcedPowerLimit": 700_000, "nvmlDeviceGetMaxClockInfo": {1: 1980},
        "nvmlDeviceGetApplicationsClock": {1: 1755},
    }  # fmt: skip
    library = script_nvml(monkeypatch, answers)
    monkeypatch.setattr(pynvml, "nvmlSystemGetDriverVersion", lambda: version)
    assert gpu_settings("1") == GpuSettings("570.124.06", 700.0, 1980.0, 1755.0)
    assert library.opened == 0


def test_settings_that_are_unknown_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """A MIG slice has no power limit; without a GPU, NVML is not asked."""
    script_nvml(monkeypatch, {"nvmlDeviceGetEnforcedPowerLimit": NOT_SUPPORTED})
    assert gpu_settings("1") == GpuSettings()
    assert gpu_settings("of another GPU") == gpu_settings(None) == GpuSettings()
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert gpu_settings("1") == GpuSettings()


def test_a_driver_with_only_newer_names(monkeypatch: pytest.MonkeyPatch) -> None:
    if not hasattr(pynvml, "nvmlDeviceGetCurrentClocksEventReasons"):
        pytest.skip("nvidia-ml-py3 has only the older names")
    answers = {
        name: answer for name, answer in ALL_FIGURES.items() if "Throttle" not in name and "Temperature" not in name
    }
    answers |= {"nvmlDeviceGetCurrentClocksEventReasons": 0x8, "nvmlDeviceGetTemperatureV": {"temperature": 55}}
    script_nvml(monkeypatch, answers)
    state = opened().read()
    assert (state.throttle, state.temperature_c) == (("hw_slowdown",), 55.0)


def test_throttle_reasons_have_nvml_names() -> None:
    assert throttle_names(0) == ()
    assert throttle_names(0x1 | 0x1000) == ("gpu_idle", "0x1000")
    for name, bit in vars(pynvml).items():
        reason = re.fullmatch(r"nvmlClocks(?:Throttle|Event)Reason(\w+)", name)
        if reason and reason[1] not in ("All", "None", "UserDefinedClocks"):
            assert THROTTLE_REASONS[bit] == re.sub(r"(?<=.)(?=[A-Z])", "_", reason[1]).lower()


class TwoGpus(ScriptedLibrary):
    """A library of two GPUs, which counts them and says their names."""

    def nvmlDeviceGetCount_v2(self, count: Any) -> int:
        count._obj.value = 2
        return 0

    def nvmlDeviceGetHandleByIndex_v2(self, index: Any, handle: Any) -> int:
        self.index = index.value
        return 0 if index.value < 2 else int(pynvml.NVML_ERROR_INVALID_ARGUMENT)

    def nvmlDeviceGetUUID(self, handle: Any, text: Any, length: Any) -> int:
        text.value = f"GPU-{self.index}".encode()
        return 0

    def nvmlDeviceGetName(self, handle: Any, text: Any, length: Any) -> int:
        text.value = b"NVIDIA H100"
        return 0


@pytest.mark.parametrize(
    ("visible", "expected"),
    [
        (None, ["0", "1"]),
        ("1,0", ["1", "0"]),
        ("1", ["1"]),
        ("GPU-1,MIG-7", ["1", "7"]),
        ("", []),
        ("7", []),
        ("NoDevFiles", []),
    ],
)
def test_visible_gpus(visible: str | None, expected: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    library = TwoGpus("GPU-1", {})
    monkeypatch.setattr(pynvml, "nvmlLib", library)
    monkeypatch.setattr(pynvml, "_nvmlGetFunctionPointer_cache", {})
    environ = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    gpus = visible_gpus(environ)
    assert [gpu.uuid for gpu in gpus] == expected
    assert {gpu.name for gpu in gpus} <= {"NVIDIA H100", None}
    assert library.opened == 0


def test_no_gpu_is_visible_without_nvml(monkeypatch: pytest.MonkeyPatch) -> None:
    script_nvml(monkeypatch, {})
    assert visible_gpus({}) == ()
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert visible_gpus({}) == ()
