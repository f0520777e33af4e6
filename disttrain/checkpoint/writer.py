"""Writes the checkpoints of a run in a thread: a file gets its name only when all of it is on the disk."""

from __future__ import annotations

import hashlib
import json
import queue
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, BinaryIO

import torch
from torch import Tensor

from disttrain.checkpoint.files import MAX_CHECKPOINTS, Claim, Manifest, list_manifests, remove
from disttrain.errors import NewerAttempt, first_line
from disttrain.records.atomic_write import atomic_write

_CopyEvents = tuple[torch.cuda.Event, torch.cuda.Event]  # before and after the copies from a GPU


@dataclass(frozen=True)
class CheckpointOutcome:
    """The result of one write, and its cost."""

    step: int
    blocked_ms: float  # the time that training waited for the copy and for an earlier unfinished write
    write_s: float  # the time of the write in its thread, while training continues
    size_bytes: int | None  # None if the write failed
    error: str | None = None  # the reason of the failure


class CheckpointWriter:
    """Writes checkpoints of one run in a thread of rank 0.

    Args:
        claim: This attempt's claim on the folder.
        folder: The checkpoint folder.
        identity: The id of the run.
        world_size: The number of ranks.
        on_gpu: Whether the run trains on a GPU.
    """

    def __init__(self, claim: Claim, folder: Path, identity: str, world_size: int, *, on_gpu: bool) -> None:
        self._on_gpu = on_gpu
        self._claim = claim
        self._folder = folder
        self._identity = identity
        self._world_size = world_size
        self._buffers: dict[str, Tensor] = {}
        self._events: _CopyEvents | None = None
        self._thread: threading.Thread | None = None
        self._done: queue.SimpleQueue[CheckpointOutcome | NewerAttempt] = queue.SimpleQueue()

    def save(self, step: int, state: Mapping[str, Any], began_s: float) -> None:
        """Copies the state, and writes the copy while training continues.

        Args:
            step: The last step done.
            state: The state to save: tensors, numbers and texts in mappings and lists. What is in a MappingProxyType
                does not change any more, and is not copied.
            began_s: The `time.perf_counter` time at which the loop began to wait for this save.
        """
        # The thread still reads the buffers of the copy. At intervals that keep the cost low, it has long finished.
        self.wait()
        copy_began_s = time.perf_counter()
        copied, events = self._copy(state)
        waited_ms, copy_ms = (copy_began_s - began_s) * 1000, (time.perf_counter() - copy_began_s) * 1000
        arguments = (step, copied, events, waited_ms, copy_ms)
        self._thread = threading.Thread(target=self._write, args=arguments, daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Waits for the current write."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def done(self) -> list[CheckpointOutcome]:
        """The outcomes of writes since the last call; a failed write is reported, and the run continues without it.

        Raises:
            NewerAttempt: A newer attempt owns the run.
        """
        outcomes: list[CheckpointOutcome] = []
        while not self._done.empty():
            outcome = self._done.get()
            if isinstance(outcome, NewerAttempt):
                raise outcome
            outcomes.append(outcome)
        return outcomes

    def _copy(self, state: Mapping[str, Any]) -> tuple[Any, _CopyEvents | None]:
        """A copy of the state in buffers that are reused for the next checkpoint.

        A copy from a GPU goes into pinned memory, and the loop does not wait for it. The thread waits for it, and reads
        from the events around the copies how long they delayed the following steps.
        """
        events = None
        if self._on_gpu:
            if self._events is None:
                self._events = (_event(), _event())
            events = self._events  # the thread has read them: `save` has waited for it
            events[0].record()

        def visit(value: Any, name: str) -> Any:
            if isinstance(value, MappingProxyType):
                return dict(value)
            if isinstance(value, Tensor):
                buffer = self._buffers.get(name)
                if buffer is None or buffer.shape != value.shape or buffer.dtype != value.dtype:
                    buffer = torch.empty_like(value, device="cpu", pin_memory=value.is_cuda)
                    self._buffers[name] = buffer
                return buffer.copy_(value.detach(), non_blocking=True)
            if isinstance(value, Mapping):
                return {key: visit(item, f"{name}/{key}") for key, item in value.items()}
            if isinstance(value, list | tuple):
                return type(value)(visit(item, f"{name}/{index}") for index, item in enumerate(value))
            return value

        copied = visit(state, "")
        if events is not None:
            events[1].record()
        return copied, events

    def _write(self, step: int, state: Any, events: _CopyEvents | None, waited_ms: float, copy_ms: float) -> None:
        start, size, error = time.perf_counter(), None, None
        try:
            if events is not None:
                events[1].synchronize()  # in this thread, so that the training loop does not wait
                # Host and GPU copy at the same time: the longer of the two delays the steps.
                copy_ms = max(copy_ms, events[0].elapsed_time(events[1]))
            size = self._write_files(step, state)
        except NewerAttempt as newer:
            self._done.put(newer)
            return
        except Exception as failure:  # noqa: BLE001 - torch turns a full disk, for example, into its own errors
            error = first_line(failure)
        self._done.put(CheckpointOutcome(step, waited_ms + copy_ms, time.perf_counter() - start, size, error))

    def _write_files(self, step: int, state: Any) -> int:
        name = f"attempt-{self._claim.attempt:05d}-step-{step:09d}"
        path = self._folder / f"{name}.pt"
        self._claim.check()
        with atomic_write(path) as file:
            hashing = _HashingFile(file)
            torch.save(state, hashing)  # type: ignore[arg-type]
        self._claim.check()
        manifest = Manifest(
            attempt=self._claim.attempt,
            step=step,
            file=path.name,
            size_bytes=hashing.size_bytes,
            sha256=hashing.digest.hexdigest(),
            identity=self._identity,
            world_size=self._world_size,
        )
        with atomic_write(self._folder / f"{name}.json") as file:
            file.write(json.dumps(asdict(manifest), indent=2).encode())
        for old in list_manifests(self._folder)[MAX_CHECKPOINTS:]:
            remove(self._folder, old)
        return hashing.size_bytes


def _event() -> torch.cuda.Event:
    event: torch.cuda.Event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    return event


class _HashingFile:
    """A file that is hashed while it is written, so that it is not read again for its checksum."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.digest = hashlib.sha256()
        self.size_bytes = 0

    def write(self, data: Any) -> int:
        self.digest.update(data)
        written = self._file.write(data)
        self.size_bytes += written
        return written

    def flush(self) -> None:
        self._file.flush()
