"""The state of a fake GPU: its queue, its events, its random generator, and its waits."""

from __future__ import annotations

import threading
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

SYNC_MESSAGE = "called a synchronizing CUDA operation"  # torch's text, c10/cuda/CUDAFunctions.cpp
RNG_STATE_BYTES = 16  # a seed and an offset, as in CUDA's generator


@dataclass(frozen=True)
class Properties:
    """What `torch.cuda.get_device_properties` returns, as far as it is used."""

    name: str
    uuid: str
    pci_domain_id: int = 0
    pci_bus_id: int = 0x3B
    pci_device_id: int = 0
    multi_processor_count: int = 132
    total_memory: int = 80 * 2**30
    major: int = 9
    minor: int = 0


@dataclass
class FakeGpus:
    """The fake GPUs of a process.

    Attributes:
        properties: One entry for each GPU.
        current: The index of the current device.
        waits: The number of operations for which the host waited for a GPU, without waits for events.
        sync_debug: The mode of `torch.cuda.set_sync_debug_mode`.
        events_made: The number of events that were made.
        unpinned_copies: Copies to or from a GPU that should not wait, but whose memory on the host is not pinned.
        inits: The arguments of each `init_process_group`.
    """

    properties: tuple[Properties, ...]
    current: int = 0
    waits: int = 0
    sync_debug: str = "default"
    events_made: int = 0
    unpinned_copies: int = 0
    inits: list[dict[str, Any]] = field(default_factory=list)
    queue: list[Callable[[], None]] = field(default_factory=list)
    done: int = 0  # the number of entries of the queue that are done
    seed: int = 0
    offset: int = 0
    lock: threading.RLock = field(default_factory=threading.RLock)

    def wait(self, until: int | None = None) -> None:
        """Does the queued work, all of it or the first entries."""
        with self.lock:
            end = len(self.queue) if until is None else until
            while self.done < end:
                self.queue[self.done]()
                self.done += 1

    def host_waits(self) -> None:
        """An operation makes the host wait: it is counted, and reported as the debug mode says."""
        self.waits += 1
        if self.sync_debug == "error":
            raise RuntimeError(SYNC_MESSAGE)
        if self.sync_debug == "warn":
            warnings.warn(SYNC_MESSAGE, stacklevel=3)
        self.wait()

    def rng_state(self) -> Tensor:
        return torch.tensor([self.seed, self.offset]).view(torch.uint8)

    def set_rng_state(self, state: Tensor) -> None:
        assert state.dtype == torch.uint8
        assert state.numel() == RNG_STATE_BYTES
        self.seed, self.offset = state.clone().view(torch.int64).tolist()

    def seed_all(self, seed: int) -> None:
        self.seed, self.offset = int(seed), 0

    def draw(self, function: Callable[[], Any]) -> Any:
        """Calls a function that draws from this GPU's generator, and not from the CPU's."""
        before = torch.get_rng_state()
        torch.default_generator.manual_seed((self.seed * 1_000_003 + self.offset) % 2**63)
        self.offset += 4
        try:
            return function()
        finally:
            torch.set_rng_state(before)


class FakeStream:
    """The only stream of a fake GPU."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def is_capturing(self) -> bool:
        return False


class FakeEvent:
    """An event is complete when the work that was queued before it is done."""

    _gpus: ClassVar[FakeGpus]

    def __init__(self, enable_timing: bool = False, **_: Any) -> None:
        self._gpus.events_made += 1
        self._timing = enable_timing
        self._place: int | None = None
        self._time_s = 0.0
        self._device: int | None = None

    def record(self, stream: FakeStream | None = None) -> None:
        device = self._gpus.current if stream is None else stream.device.index
        if self._device not in (None, device):
            raise RuntimeError("Event device does not match recording stream's device.")
        self._device, self._time_s = device, time.perf_counter()
        with self._gpus.lock:
            self._gpus.queue.append(lambda: None)
            self._place = len(self._gpus.queue)

    def query(self) -> bool:
        return self._place is None or self._gpus.done >= self._place

    def synchronize(self) -> None:
        if self._place is not None:
            self._gpus.wait(self._place)

    def elapsed_time(self, end: FakeEvent) -> float:
        if not (self._timing and end._timing):
            raise ValueError("Both events must be created with argument 'enable_timing=True'.")
        if self._place is None or end._place is None:
            raise ValueError("Both events must be recorded before calculating elapsed time.")
        if not (self.query() and end.query()):
            raise RuntimeError("Both events must be completed before calculating elapsed time.")
        return (end._time_s - self._time_s) * 1000


def event_class(gpus: FakeGpus) -> type[FakeEvent]:
    """The class of these GPUs' events."""
    return type("Event", (FakeEvent,), {"_gpus": gpus})
