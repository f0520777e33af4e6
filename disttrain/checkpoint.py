"""Checkpoints of a run: complete, written beside the loop, verified before they are trusted, owned by one attempt."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from disttrain.errors import NewerAttempt

KEPT = 2
_NAME = re.compile(r"attempt-(?P<attempt>\d{5})-step-(?P<step>\d{9})\.json")
_CLAIM = re.compile(r"attempt-(\d{5})")


@dataclass(frozen=True)
class Manifest:
    """What vouches for one checkpoint; written after it, so that a checkpoint without one is not whole."""

    attempt: int
    step: int
    file: str
    size_bytes: int
    sha256: str
    identity: str  # of the run
    world_size: int


@dataclass(frozen=True)
class Written:
    """One checkpoint that has reached the disk, and what it cost."""

    step: int
    blocked_ms: float  # that the loop waited: the copy, and an earlier write that was not done
    write_s: float  # beside the loop
    size_bytes: int


class Claim:
    """The right of one attempt to write into a run's checkpoint folder, until a newer attempt claims it.

    A requeued job's ranks can live on beyond a cut cable while the next attempt runs. Each attempt takes the next free
    number; its files carry it, and it stops when it finds a higher one.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self.attempt = _last_claim(folder)
        while True:
            self.attempt += 1
            with contextlib.suppress(FileExistsError):
                # Created or refused by the file system in one step, over NFS too.
                os.close(os.open(folder / f"attempt-{self.attempt:05d}", os.O_CREAT | os.O_EXCL | os.O_WRONLY))
                return

    def check(self) -> None:
        """Makes sure that this attempt is the latest.

        Raises:
            NewerAttempt: It is not.
        """
        latest = _last_claim(self._folder)
        if latest > self.attempt:
            raise NewerAttempt(f"attempt {latest} of this run has started; attempt {self.attempt} stops here")


def _last_claim(folder: Path) -> int:
    return max((int(match[1]) for match in map(_CLAIM.fullmatch, os.listdir(folder)) if match), default=0)


class CheckpointWriter:
    """Writes checkpoints of one run in a thread of rank 0."""

    def __init__(self, claim: Claim, folder: Path, identity: str, world_size: int) -> None:
        self._claim = claim
        self._folder = folder
        self._identity = identity
        self._world_size = world_size
        self._buffers: dict[str, Tensor] = {}
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._written: list[Written] = []

    def save(self, step: int, state: Mapping[str, Any]) -> None:
        """Copies the state, and writes the copy while training goes on.

        Raises:
            NewerAttempt: Another attempt owns the run; found while the last checkpoint was written.
            OSError: The last checkpoint could not be written.
        """
        start = time.perf_counter()
        # The copy goes into the buffers that the thread reads; at intervals that keep the cost low it is long done.
        self.wait()
        copied, ready = self._copy(state)
        blocked_ms = (time.perf_counter() - start) * 1000
        self._thread = threading.Thread(target=self._write, args=(step, copied, ready, blocked_ms), daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Waits for the write under way.

        Raises:
            BaseException: What went wrong in it.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def written(self) -> list[Written]:
        """Checkpoints that have reached the disk since the last call."""
        found, self._written = self._written, []
        return found

    def _copy(self, state: Mapping[str, Any]) -> tuple[Any, torch.cuda.Event | None]:
        """The state in memory of our own, kept from one checkpoint to the next.

        From a GPU into pinned memory, without waiting for it: the thread does.
        """
        on_gpu = False

        def visit(value: Any, name: str) -> Any:
            nonlocal on_gpu
            if isinstance(value, Tensor):
                on_gpu |= value.is_cuda
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
        ready = None
        if on_gpu:
            ready = torch.cuda.Event()  # type: ignore[no-untyped-call]
            ready.record()
        return copied, ready

    def _write(self, step: int, state: Any, ready: torch.cuda.Event | None, blocked_ms: float) -> None:
        try:
            start = time.perf_counter()
            if ready is not None:
                ready.synchronize()
            size = self._write_files(step, state)
            self._written.append(Written(step, blocked_ms, time.perf_counter() - start, size))
        except BaseException as error:  # noqa: BLE001 - raised again in the loop, by wait
            self._error = error

    def _write_files(self, step: int, state: Any) -> int:
        name = f"attempt-{self._claim.attempt:05d}-step-{step:09d}"
        path = self._folder / f"{name}.pt"
        self._claim.check()
        with _durable(path) as file:
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
        with _durable(self._folder / f"{name}.json") as file:
            file.write(json.dumps(asdict(manifest), indent=2).encode())
        for old in list_manifests(self._folder)[KEPT:]:
            remove(self._folder, old)
        return hashing.size_bytes


class _HashingFile:
    """A file that is hashed as it is written, so that it need not be read again."""

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


@contextlib.contextmanager
def _durable(path: Path) -> Iterator[BinaryIO]:
    """A file that appears under its name when all of it is on the disk, and not at all otherwise."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the name too
    finally:
        os.close(folder)


def list_manifests(folder: Path) -> list[Path]:
    """The manifests in a folder, the one to go on from first: that of the latest attempt, and of its latest step."""
    return sorted((path for path in folder.glob("attempt-*.json") if _NAME.fullmatch(path.name)), reverse=True)


def remove(folder: Path, manifest: Path) -> None:
    """Removes a checkpoint; the manifest first, so that nothing vouches for what is half gone."""
    manifest.unlink(missing_ok=True)
    (folder / manifest.name).with_suffix(".pt").unlink(missing_ok=True)


@dataclass(frozen=True)
class Found:
    """The checkpoint to go on from, and what was wrong with those that were passed over."""

    manifest: Manifest | None
    notices: tuple[str, ...]


def find(folder: Path) -> Found:
    """The latest whole checkpoint of a folder.

    Each is read and compared with its checksum; one that does not match is passed over for the one before.
    """
    notices: list[str] = []
    for path in list_manifests(folder):
        try:
            manifest = Manifest(**json.loads(path.read_text(encoding="utf-8")))
            problem = _damage(folder / manifest.file, manifest)
        except (OSError, ValueError, TypeError) as error:
            problem = f"its manifest cannot be read: {error}"
        if problem is None:
            return Found(manifest, tuple(notices))
        notices.append(f"checkpoint {path.stem} is passed over: {problem}")
    return Found(None, tuple(notices))


def _damage(path: Path, manifest: Manifest) -> str | None:
    try:
        size = path.stat().st_size
        if size != manifest.size_bytes:
            return f"it has {size} of {manifest.size_bytes} bytes"
        with path.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != manifest.sha256:
                return "its checksum does not match"
    except OSError as error:
        return str(error.strerror or error)
    return None


def load(folder: Path, manifest: Manifest) -> dict[str, Any]:
    """The state of a checkpoint, in memory: whoever takes it copies it to where it belongs."""
    state: dict[str, Any] = torch.load(folder / manifest.file, map_location="cpu", weights_only=True)
    return state


def clear(folder: Path) -> None:
    """Removes every checkpoint of a run that has ended well; the claims stay, since an old attempt may still live."""
    for manifest in list_manifests(folder):
        remove(folder, manifest)
