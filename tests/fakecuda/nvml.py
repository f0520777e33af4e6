"""The NVML of fake GPUs: constant power, and an energy counter that fits it."""

from __future__ import annotations

import time
from typing import Any

import pynvml

from tests.disttrain.scriptednvml import ALL_FIGURES, ScriptedLibrary
from tests.fakecuda.gpu import FakeGpus

_ENERGY = "nvmlDeviceGetTotalEnergyConsumption"
_POWER = "nvmlDeviceGetPowerUsage"


class FakeNvml(ScriptedLibrary):
    """A library that finds each of the fake GPUs by its UUID."""

    def __init__(self, gpus: FakeGpus) -> None:
        super().__init__("", dict(ALL_FIGURES))
        self._uuids = {f"GPU-{properties.uuid}".encode() for properties in gpus.properties}
        self._began_s = time.monotonic()

    def nvmlDeviceGetHandleByUUID(self, uuid: Any, handle: Any) -> int:
        return 0 if uuid.value in self._uuids else int(pynvml.NVML_ERROR_NOT_FOUND)

    def _answer(self, name: str, *rest: Any) -> int:
        if name != _ENERGY:
            return super()._answer(name, *rest)
        rest[-1]._obj.value = int(self.answers[_POWER] * (time.monotonic() - self._began_s))
        return 0
