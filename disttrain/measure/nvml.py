"""The state of one GPU, read through NVML; an unsupported figure is None, never 0."""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

_ENERGY = "nvmlDeviceGetTotalEnergyConsumption"
_NAME_OF_GPU = re.compile(r"\d+$|(?:GPU|MIG)-")  # in CUDA_VISIBLE_DEVICES
# nvmlClocksEventReasons in nvml.h (earlier: throttle reasons): the reasons why clocks are reduced.
THROTTLE_REASONS = {
    0x1: "gpu_idle",
    0x2: "applications_clocks_setting",
    0x4: "sw_power_cap",
    0x8: "hw_slowdown",
    0x10: "sync_boost",
    0x20: "sw_thermal_slowdown",
    0x40: "hw_thermal_slowdown",
    0x80: "hw_power_brake_slowdown",
    0x100: "display_clock_setting",
    0x200: "board_limit",
    0x400: "reliability",
    1 << 63: "unknown",
}


@dataclass(frozen=True)
class GpuState:
    """One reading."""

    util_percent: float | None = None
    memory_used_mib: float | None = None
    power_w: float | None = None
    temperature_c: float | None = None
    sm_clock_mhz: float | None = None
    memory_clock_mhz: float | None = None
    throttle: tuple[str, ...] | None = None
    energy_counter_j: float | None = None  # since the driver was loaded
    error: str | None = None  # of a figure that could be read before, for example when the GPU has fallen off the bus


@dataclass(frozen=True)
class GpuSettings:
    """What limits the speed of a GPU and does not change during a run."""

    driver_version: str | None = None
    gpu_power_cap_w: float | None = None
    gpu_max_sm_clock_mhz: float | None = None
    gpu_sm_clock_setting_mhz: float | None = None


class Gpu:
    """The GPU of a rank, or its MIG slice. For a slice, figures of the complete GPU are not used in their place.

    Args:
        uuid: The UUID as torch returns it, without the prefix that distinguishes a GPU from a MIG slice.
        nvml: The module pynvml, from nvidia-ml-py3 or from its successor nvidia-ml-py.

    Raises:
        NVMLError: NVML is not available, or it does not find the GPU.
    """

    def __init__(self, uuid: str, nvml: Any) -> None:
        self._nvml = nvml
        self._supported: set[str] = set()  # functions that have returned a value
        self._error: str | None = None
        nvml.nvmlInit()
        try:
            self._handle = self._find(uuid)
        except nvml.NVMLError:
            self.close()
            raise

    def read(self) -> GpuState:
        """The current state. A figure that cannot be read is None; no error is raised."""
        self._error = None
        nvml = self._nvml
        state = {
            "util_percent": self._get("nvmlDeviceGetUtilizationRates", convert=lambda rates: float(rates.gpu)),
            "memory_used_mib": self._get("nvmlDeviceGetMemoryInfo", convert=lambda memory: memory.used / 2**20),
            "power_w": self._get("nvmlDeviceGetPowerUsage", convert=lambda milliwatts: milliwatts / 1000),
            # For two names: a CUDA release may have only one of the two functions.
            "temperature_c": self._get(
                "nvmlDeviceGetTemperature", "nvmlDeviceGetTemperatureV", arguments=(nvml.NVML_TEMPERATURE_GPU,)
            ),
            "sm_clock_mhz": self._get("nvmlDeviceGetClockInfo", arguments=(nvml.NVML_CLOCK_SM,)),
            "memory_clock_mhz": self._get("nvmlDeviceGetClockInfo", arguments=(nvml.NVML_CLOCK_MEM,)),
            "throttle": self._get(
                "nvmlDeviceGetCurrentClocksEventReasons",
                "nvmlDeviceGetCurrentClocksThrottleReasons",
                convert=throttle_names,
            ),
            "energy_counter_j": self._get(_ENERGY, convert=lambda mj: mj / 1000),
        }
        return GpuState(**state, error=self._error)

    def settings(self) -> GpuSettings:
        """What limits the speed of the GPU. A figure that cannot be read is None; no error is raised."""
        nvml = self._nvml
        version = None
        with contextlib.suppress(nvml.NVMLError, AttributeError):
            version = _text(nvml.nvmlSystemGetDriverVersion())
        return GpuSettings(
            driver_version=version,
            gpu_power_cap_w=self._get(
                "nvmlDeviceGetEnforcedPowerLimit", "nvmlDeviceGetPowerManagementLimit", convert=lambda mw: mw / 1000
            ),
            gpu_max_sm_clock_mhz=self._get("nvmlDeviceGetMaxClockInfo", arguments=(nvml.NVML_CLOCK_SM,)),
            gpu_sm_clock_setting_mhz=self._get("nvmlDeviceGetApplicationsClock", arguments=(nvml.NVML_CLOCK_SM,)),
        )

    def close(self) -> None:
        with contextlib.suppress(self._nvml.NVMLError):
            self._nvml.nvmlShutdown()

    def _find(self, uuid: str) -> Any:
        try:
            return self._nvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}".encode())  # nvidia-ml-py3 accepts only bytes
        except self._nvml.NVMLError:
            return self._nvml.nvmlDeviceGetHandleByUUID(f"MIG-{uuid}".encode())

    def _get(self, *names: str, arguments: tuple[int, ...] = (), convert: Callable[[Any], Any] = float) -> Any:
        """The value of the first function that the module, the driver and the GPU support; None if there is none."""
        for name in names:
            function = _function(self._nvml, name)
            if function is None:
                continue
            try:
                value = convert(function(self._handle, *arguments))
            except self._nvml.NVMLError as error:
                if name in self._supported:  # otherwise the error only means that the figure is not supported
                    self._error = f"{name}: {error}"
                continue
            self._supported.add(name)
            return value
        return None


def _function(nvml: Any, name: str) -> Callable[..., Any] | None:
    """A function of the module; for nvidia-ml-py3, the energy counter is read from the library directly."""
    function: Callable[..., Any] | None = getattr(nvml, name, None)
    if function is None and name == _ENERGY:
        return partial(_energy_counter, nvml)
    return function


def _energy_counter(nvml: Any, handle: Any) -> int:
    millijoules = ctypes.c_ulonglong()
    nvml._nvmlCheckReturn(nvml._nvmlGetFunctionPointer(_ENERGY)(handle, ctypes.byref(millijoules)))
    return millijoules.value


def open_gpu(uuid: str) -> tuple[Gpu | None, str | None]:
    """A GPU opened through NVML, or the reason why it could not be opened."""
    try:
        import pynvml  # only here: a rank without a GPU does not need it
    except ImportError as error:
        return None, str(error)
    try:
        return Gpu(uuid, pynvml), None
    except pynvml.NVMLError as error:
        return None, str(error)


@dataclass(frozen=True)
class VisibleGpu:
    """A GPU that a program sees.

    Attributes:
        uuid: Its UUID, or that of a MIG slice, without the prefix.
        name: Its model; None if NVML does not say it.
    """

    uuid: str
    name: str | None = None


def visible_gpus(environ: Mapping[str, str]) -> tuple[VisibleGpu, ...]:
    """The GPUs that CUDA shows a program with this environment, in its order; empty if NVML is not available.

    Numbers count the GPUs as NVML does. On a node with several models, CUDA counts differently unless CUDA_DEVICE_ORDER
    is PCI_BUS_ID.
    """
    visible = environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None and not visible.strip():
        return ()
    try:
        import pynvml as nvml
    except ImportError:
        return ()
    gpus = []
    with contextlib.suppress(nvml.NVMLError, AttributeError):
        nvml.nvmlInit()
        try:
            names = [str(index) for index in range(nvml.nvmlDeviceGetCount())]
            if visible is not None:
                names = [name.strip() for name in visible.split(",")]
            for name in itertools.takewhile(_NAME_OF_GPU.match, names):  # CUDA ignores all after an invalid one
                gpus.append(_visible_gpu(nvml, name))
        finally:
            nvml.nvmlShutdown()
    return tuple(gpus)


def _visible_gpu(nvml: Any, name: str) -> VisibleGpu:
    """The GPU with this number or UUID.

    Raises:
        NVMLError: NVML does not find it.
    """
    if not name.isdigit():  # GPU-..., MIG-...
        return VisibleGpu(name.partition("-")[2])
    handle = nvml.nvmlDeviceGetHandleByIndex(int(name))
    uuid, model = _text(nvml.nvmlDeviceGetUUID(handle)), _text(nvml.nvmlDeviceGetName(handle))
    return VisibleGpu(uuid.partition("-")[2], model)


def _text(value: str | bytes) -> str:
    """A text of the module: nvidia-ml-py3 returns bytes."""
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    return value


def gpu_settings(uuid: str | None) -> GpuSettings:
    """The settings of a rank's GPU; empty without a GPU, and if NVML does not find it."""
    if uuid is None:
        return GpuSettings()
    gpu, _ = open_gpu(uuid)
    if gpu is None:
        return GpuSettings()
    settings = gpu.settings()
    gpu.close()
    return settings


def throttle_names(mask: int) -> tuple[str, ...]:
    """The names of the reasons in a bit mask; an unknown reason appears as its bit.

    Example:
        >>> throttle_names(0x4 | 0x1000)
        ('sw_power_cap', '0x1000')
    """
    bits = [1 << index for index in range(mask.bit_length()) if mask >> index & 1]
    return tuple(THROTTLE_REASONS.get(bit, hex(bit)) for bit in bits)
