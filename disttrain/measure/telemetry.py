"""The state of a rank's GPU and host, sampled in the background while it trains."""

from __future__ import annotations

import dataclasses
import queue
import threading
import time
from types import TracebackType
from typing import Literal, Self

from disttrain.measure.host_load import Host
from disttrain.measure.nvml import Gpu, GpuState, open_gpu
from disttrain.records.record_types import TelemetryRecord

EnergySource = Literal["counter", "power"]
_PATIENCE_S = 10.0  # for the last sample: a GPU that has fallen off the bus may never answer


class Energy:
    """What a GPU has used since the first reading that tells of it.

    By its energy counter; where that reading has none, the mean of two neighbouring powers times the time between them,
    summed. It stays with the one kind: a counter that fails once is not replaced by another kind of figure.
    """

    def __init__(self) -> None:
        self.source: EnergySource | None = None
        self._first_j = 0.0  # of the counter
        self._last: tuple[float, float] | None = None  # time and power
        self._sum_j = 0.0

    def add(self, time_s: float, state: GpuState) -> float | None:
        """The energy up to this reading, in joules; None where it does not tell.

        Args:
            time_s: Of the reading, by a clock that is never set.
            state: The reading.
        """
        if self.source is None and state.energy_counter_j is not None:
            self.source, self._first_j = "counter", state.energy_counter_j
        elif self.source is None and state.power_w is not None:
            self.source = "power"
        if self.source == "counter":
            return None if state.energy_counter_j is None else state.energy_counter_j - self._first_j
        return None if state.power_w is None else self._integrate(time_s, state.power_w)

    def _integrate(self, time_s: float, power_w: float) -> float:
        if self._last is not None:
            before_s, before_w = self._last
            self._sum_j += (before_w + power_w) / 2 * (time_s - before_s)
        self._last = (time_s, power_w)
        return self._sum_j


class Sampler:
    """Reads a rank's GPU and host every so many seconds, in a thread, as long as the block that it is entered for.

    Whatever goes wrong there is in a sample's `error`, and disturbs no training.

    Args:
        every_s: Seconds between two samples; 0: there are none.
        gpu: None: the columns of the GPU stay empty.
    """

    def __init__(self, every_s: float, gpu: Gpu | None) -> None:
        self._every_s = every_s
        self._gpu = gpu
        self._host = Host()
        self._energy = Energy()
        self._records: queue.SimpleQueue[TelemetryRecord] = queue.SimpleQueue()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="telemetry", daemon=True)

    def __enter__(self) -> Self:
        if self._every_s:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Takes a last sample, so that the energy is that of the whole time."""
        self._ended.set()
        if self._every_s:
            self._thread.join(_PATIENCE_S)

    def taken(self) -> list[TelemetryRecord]:
        """The samples since the last call."""
        found = []
        while not self._records.empty():
            found.append(self._records.get())
        return found

    def sample(self) -> TelemetryRecord:
        """One sample, here and now."""
        time_s = time.time()
        try:
            state = self._gpu.read() if self._gpu else GpuState()
            return TelemetryRecord(
                time_s=time_s,
                gpu_util_percent=state.util_percent,
                gpu_memory_used_mib=state.memory_used_mib,
                gpu_power_w=state.power_w,
                gpu_temperature_c=state.temperature_c,
                gpu_sm_clock_mhz=state.sm_clock_mhz,
                gpu_memory_clock_mhz=state.memory_clock_mhz,
                gpu_throttle=state.throttle,
                gpu_energy_j=self._energy.add(time.monotonic(), state),
                gpu_energy_source=self._energy.source,
                **dataclasses.asdict(self._host.read()),
                error=state.error,
            )
        except Exception as error:  # noqa: BLE001 - of drivers and kernels anything may come, and none may end a run
            return TelemetryRecord(time_s=time_s, error=f"{type(error).__name__}: {error}")

    def _run(self) -> None:
        self._records.put(self.sample())
        while not self._ended.wait(self._every_s):
            self._records.put(self.sample())
        self._records.put(self.sample())
        if self._gpu:
            self._gpu.close()


def open_sampler(every_s: float, gpu_uuid: str | None) -> tuple[Sampler, tuple[str, ...]]:
    """The sampler of a rank, and what the user should know of it.

    Args:
        every_s: Seconds between two samples; 0: there are none.
        gpu_uuid: Of the rank's GPU; None: it has none.
    """
    gpu, lost = open_gpu(gpu_uuid) if every_s and gpu_uuid is not None else (None, None)
    notices = () if lost is None else (f"the telemetry of the GPU is empty: NVML says {lost!r}",)
    return Sampler(every_s, gpu), notices
