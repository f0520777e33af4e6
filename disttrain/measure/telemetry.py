"""Samples the state of a rank's GPU and host in the background during training."""

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
_LAST_SAMPLE_TIMEOUT_S = 10.0  # a GPU that has fallen off the bus may never answer


class Energy:
    """The energy that a GPU has used since the first reading with a counter or a power.

    If that reading has an energy counter, the energy is the difference of the counter. Otherwise it is the integral of
    the power: the mean of two consecutive powers times the time between them, summed. The method never changes: if one
    counter reading fails, power does not replace it.
    """

    def __init__(self) -> None:
        self.source: EnergySource | None = None
        self._first_j = 0.0  # the first value of the counter
        self._last: tuple[float, float] | None = None  # (time, power) of the previous reading
        self._sum_j = 0.0

    def add(self, time_s: float, state: GpuState) -> float | None:
        """The energy up to this reading, in joules; None if the reading lacks the figure.

        Args:
            time_s: The time of the reading on a monotonic clock.
            state: The reading.
        """
        if self.source is None and state.energy_counter_j is not None:
            self.source, self._first_j = "counter", state.energy_counter_j
        elif self.source is None and state.power_w is not None:
            self.source = "power"
        if self.source == "counter" and state.energy_counter_j is not None:
            return state.energy_counter_j - self._first_j
        if self.source == "power" and state.power_w is not None:
            return self._integrate(time_s, state.power_w)
        return None

    def _integrate(self, time_s: float, power_w: float) -> float:
        if self._last is not None:
            before_s, before_w = self._last
            self._sum_j += (before_w + power_w) / 2 * (time_s - before_s)
        self._last = (time_s, power_w)
        return self._sum_j


class Sampler:
    """Samples a rank's GPU and host at an interval, in a thread, for the duration of a `with` block.

    An error is reported in the sample's `error` and does not affect the training.

    Args:
        interval_s: Seconds between two samples; 0 disables sampling.
        gpu: The rank's GPU; None leaves the GPU figures empty.
        host: What reads the load of the rank and its host; None for that of this process.
    """

    def __init__(self, interval_s: float, gpu: Gpu | None, host: Host | None = None) -> None:
        self._interval_s = interval_s
        self._gpu = gpu
        self._host = host or Host()
        self._energy = Energy()
        self._records: queue.SimpleQueue[TelemetryRecord] = queue.SimpleQueue()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="telemetry", daemon=True)

    def __enter__(self) -> Self:
        if self._interval_s:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Takes a last sample, so that the energy covers the complete block."""
        self._ended.set()
        if self._interval_s:
            self._thread.join(_LAST_SAMPLE_TIMEOUT_S)

    def taken(self) -> list[TelemetryRecord]:
        """The samples since the last call."""
        samples = []
        while not self._records.empty():
            samples.append(self._records.get())
        return samples

    def sample(self) -> TelemetryRecord:
        """Takes one sample now."""
        time_s = time.time()
        try:
            state = GpuState()
            if self._gpu:
                state = self._gpu.read()
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
        except Exception as error:  # noqa: BLE001 - a driver or kernel may raise anything; no error may end a run
            return TelemetryRecord(time_s=time_s, error=f"{type(error).__name__}: {error}")

    def _run(self) -> None:
        self._records.put(self.sample())
        while not self._ended.wait(self._interval_s):
            self._records.put(self.sample())
        self._records.put(self.sample())
        if self._gpu:
            self._gpu.close()


def open_sampler(interval_s: float, gpu_uuid: str | None, host: Host | None = None) -> tuple[Sampler, tuple[str, ...]]:
    """The sampler of a rank, and notices for the user.

    Args:
        interval_s: Seconds between two samples; 0 disables sampling.
        gpu_uuid: The UUID of the rank's GPU; None without a GPU.
        host: What reads the load of the rank and its host; None for that of this process.
    """
    if not interval_s or gpu_uuid is None:
        return Sampler(interval_s, None, host), ()
    gpu, error = open_gpu(gpu_uuid)
    if error is not None:
        return Sampler(interval_s, None, host), (f"GPU telemetry is empty: NVML reports {error!r}",)
    return Sampler(interval_s, gpu, host), ()
