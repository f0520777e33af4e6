"""A scripted libnvidia-ml under the installed pynvml, whose structures, constants and errors are real.

A test machine without a GPU has no NVML, so the library itself is scripted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pynvml
import pytest


class Failing(int):
    """An answer that is the NVML error with this number."""


NOT_SUPPORTED = Failing(pynvml.NVML_ERROR_NOT_SUPPORTED)
GPU_IS_LOST = Failing(pynvml.NVML_ERROR_GPU_IS_LOST)
# The answers of a GPU: a number for a single out-parameter, fields for a structure, or values by argument.
ALL_FIGURES: dict[str, Any] = {
    "nvmlDeviceGetUtilizationRates": {"gpu": 73, "memory": 20},
    "nvmlDeviceGetMemoryInfo": {"used": 3 * 2**30, "total": 80 * 2**30},
    "nvmlDeviceGetPowerUsage": 412_500,
    "nvmlDeviceGetTemperature": {0: 61},
    "nvmlDeviceGetClockInfo": {1: 1410, 2: 2619},
    "nvmlDeviceGetCurrentClocksThrottleReasons": 0x24,
    "nvmlDeviceGetTotalEnergyConsumption": 5_000_250,
}


class ScriptedLibrary:
    """Takes the place of the shared library: one GPU, and one function per answer. Other functions do not exist."""

    def __init__(self, uuid: str, answers: dict[str, Any]) -> None:
        self._uuid = uuid
        self.answers = answers
        self.opened = 0

    def nvmlInit_v2(self) -> int:
        self.opened += 1
        return 0

    def nvmlInitWithFlags(self, flags: int) -> int:
        return self.nvmlInit_v2()

    def nvmlShutdown(self) -> int:
        self.opened -= 1
        return 0

    def nvmlDeviceGetHandleByUUID(self, uuid: Any, handle: Any) -> int:
        return 0 if uuid.value == self._uuid.encode() else int(pynvml.NVML_ERROR_NOT_FOUND)

    def __getattr__(self, name: str) -> Callable[..., int]:
        if name not in self.answers:
            raise AttributeError(name)
        return lambda handle, *rest: self._answer(name, *rest)

    def _answer(self, name: str, *rest: Any) -> int:
        answer, out = self.answers[name], rest[-1]._obj
        if isinstance(answer, dict) and len(rest) == 2:
            answer = answer[rest[0].value]
        if isinstance(answer, Failing):
            return int(answer)
        if isinstance(answer, dict):
            for field, value in answer.items():
                setattr(out, field, value)
        else:
            out.value = answer
        return 0


def script_nvml(monkeypatch: pytest.MonkeyPatch, answers: dict[str, Any], uuid: str = "GPU-1") -> ScriptedLibrary:
    """Puts a scripted library under pynvml for the duration of a test.

    Args:
        monkeypatch: The test's fixture.
        answers: The answer of each function; a test may change the answers of the returned library.
        uuid: The UUID of its GPU, with its prefix.
    """
    library = ScriptedLibrary(uuid, dict(answers))
    monkeypatch.setattr(pynvml, "nvmlLib", library)
    monkeypatch.setattr(pynvml, "_nvmlGetFunctionPointer_cache", {})
    return library
