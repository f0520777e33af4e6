"""What a run writes down: the record types, their JSONL files, and the summary that is derived from them."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import socket
import statistics
import time
import traceback
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Self, TypeVar

from disttrain.errors import UserError

T = TypeVar("T")

SUMMARY_NAME = "summary.json"
RUN_NAME = "run.json"
CHECKPOINTS_NAME = "checkpoints"
METRICS_GLOB = "metrics-rank*.jsonl"
FAILURE_GLOB = "failure-rank*.json"


def metrics_name(rank: int) -> str:
    """File name of the records of one rank.

    Example:
        >>> metrics_name(3)
        'metrics-rank00003.jsonl'
    """
    return f"metrics-rank{rank:05d}.jsonl"


def failure_name(rank: int) -> str:
    """File name of what one rank says about its own failure."""
    return f"failure-rank{rank:05d}.json"


@dataclass(frozen=True, kw_only=True)
class StartRecord:
    """Where and with what one rank started; the first line of its file."""

    kind: ClassVar[str] = "start"
    time_s: float  # seconds since 1970
    rank: int
    world_size: int
    local_rank: int
    node_rank: int
    host: str
    pid: int
    job_id: str | None
    restart_count: int
    first_step: int  # above 1: goes on from a checkpoint, and stands behind the records of the steps before
    device: str  # cpu, cuda:0
    device_name: str
    backend: str | None  # nccl, gloo; None for one rank, which exchanges nothing
    shared_gpu: bool  # another rank of this run has the same GPU: no timing of it can be compared
    folded: bool  # every logical node of the allocation is this one host
    threads: int  # intra-op threads of torch
    versions: dict[str, str]
    parameters: int
    train_examples: int
    eval_examples: int
    notices: tuple[str, ...]  # what was decided for the user: held-out split, new head


@dataclass(frozen=True, kw_only=True)
class StepRecord:
    """One optimizer step of one rank; times in milliseconds, on the device's own clock."""

    kind: ClassVar[str] = "step"
    step: int  # from 1
    epoch: int  # from 0
    loss: float | None  # mean over this rank's examples of the step; None: it had none, or the loss is not finite
    lr: float
    examples: int  # of this rank; never a padded or repeated one
    data_ms: float  # wait for the next batch, and its copy to the device
    forward_ms: float
    backward_ms: float  # with the gradient exchange that DDP overlaps with it
    optimizer_ms: float
    step_ms: float


@dataclass(frozen=True, kw_only=True)
class EvalRecord:
    """One evaluation over all ranks; the same numbers on each of them."""

    kind: ClassVar[str] = "eval"
    step: int
    loss: float | None  # mean over all evaluation examples; None: not finite
    accuracy: float  # share of 1
    examples: int  # over all ranks, each counted once
    elapsed_s: float


@dataclass(frozen=True, kw_only=True)
class CheckpointRecord:
    """What became of one checkpoint; rank 0 alone."""

    kind: ClassVar[str] = "checkpoint"
    step: int
    blocked_ms: float  # that training waited: the copy, and an earlier write that was not done
    write_s: float  # beside the loop
    size_bytes: int | None  # None: it has not reached the disk
    error: str | None  # why it has not


@dataclass(frozen=True, kw_only=True)
class EndRecord:
    """The last line of a rank that came to its end."""

    kind: ClassVar[str] = "end"
    time_s: float
    steps: int
    train_s: float  # the training loop without evaluation


Record = StartRecord | StepRecord | EvalRecord | CheckpointRecord | EndRecord
_KINDS: dict[str, type[Record]] = {
    kind.kind: kind for kind in (StartRecord, StepRecord, EvalRecord, CheckpointRecord, EndRecord)
}


@dataclass(frozen=True, kw_only=True)
class RunInfo:
    """What a run is; written by rank 0 as run.json where a sweep has not written its own before."""

    run_id: str
    allocation: str  # 2x2
    nodes: int
    gpus_per_node: int
    world_size: int
    train: dict[str, Any]  # the resolved config
    versions: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class Failure:
    """Why one rank ended early, told by itself; the first of a run's failures in time is its reason."""

    rank: int
    host: str
    time_s: float
    error: str  # name of the exception's class
    message: str
    traceback: str
    user_error: bool  # the config's or the data's mistake, not the program's


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What a finished run measured, in one object; written by rank 0.

    Times and throughput are over the measured steps, those after the first timing_warmup_steps; they are None when
    there were none.
    """

    world_size: int
    num_nodes: int
    hosts: tuple[str, ...]  # of each rank, by rank
    device_name: str
    backend: str | None
    comparable: bool  # False: ranks shared a GPU, or logical nodes were folded onto one host
    steps: int
    measured_steps: int
    train_s: float
    samples_per_s: float | None  # all ranks: examples of the measured steps / their time
    samples_per_s_per_gpu: float | None  # the same over world_size
    data_ms: float | None  # medians over rank 0's measured steps
    forward_ms: float | None
    backward_ms: float | None
    optimizer_ms: float | None
    step_ms: float | None
    train_loss: float | None  # mean over the examples of the last tenth of the steps, all ranks
    eval_loss: float | None
    eval_accuracy: float | None
    eval_examples: int | None
    notices: tuple[str, ...]


@dataclass(frozen=True)
class Written:
    """How far a rank's records are written, and what is written: enough to find out whether a file still begins so."""

    size_bytes: int = 0
    crc32: int = 0


def is_intact(path: Path, written: Written) -> bool:
    """Whether a file begins with exactly what was written."""
    if written.size_bytes == 0:
        return True
    try:
        with path.open("rb") as file:
            return zlib.crc32(file.read(written.size_bytes)) == written.crc32
    except OSError:
        return False


class RecordWriter:
    """Appends records to one rank's file, a JSON object a line.

    Lines are buffered: a flush for every step costs 6 % of a 12 ms step, and the loop hands over many steps at once.

    Args:
        path: The file.
        kept: Of an earlier attempt's records, the part to go on behind: the steps before its checkpoint.
    """

    def __init__(self, path: Path, kept: Written = Written()) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        # A file of its own: an older attempt that still lives writes into the one it has open, which is then nobody's.
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        with temporary.open("wb") as file:
            if kept.size_bytes:
                with path.open("rb") as earlier:
                    file.write(earlier.read(kept.size_bytes))
                file.flush()
                os.fsync(file.fileno())  # before it takes the place of the only copy
        os.replace(temporary, path)
        self._file = path.open("ab")
        self._written = kept

    def write(self, records: Sequence[Record]) -> None:
        """Appends the records and hands them to the operating system."""
        lines = "".join(encode(record) + "\n" for record in records).encode()
        self._file.write(lines)
        self._file.flush()
        before = self._written
        self._written = Written(before.size_bytes + len(lines), zlib.crc32(lines, before.crc32))

    def sync(self) -> Written:
        """Waits until all records are on the disk, before a checkpoint counts on them."""
        os.fsync(self._file.fileno())
        return self._written

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def encode(record: Record) -> str:
    """One line of JSON, its kind first."""
    return json.dumps({"kind": record.kind, **_plain(record)}, allow_nan=False)


def _plain(value: Any) -> dict[str, Any]:
    """A dataclass as JSON takes it: a loss that has become NaN or infinite is null, since JSON has no such number."""
    return {
        name: None if isinstance(item, float) and not math.isfinite(item) else item
        for name, item in dataclasses.asdict(value).items()
    }


def decode(line: str) -> Record:
    """The record of one line; fields that a newer version wrote and this one does not know are left out.

    Raises:
        ValueError: The line is not a record of a known kind.
    """
    values = json.loads(line)
    kind = _KINDS.get(values.pop("kind", ""))
    if kind is None:
        raise ValueError(f"not a record: {line[:80]!r}")
    return from_json(kind, values)


def read_records(path: Path) -> Iterator[Record]:
    """The records of one file, oldest first; a last line that is still being written is left out."""
    with path.open(encoding="utf-8") as file:
        for line in file:
            if line.endswith("\n"):
                yield decode(line)


def from_json(kind: type[T], values: dict[str, Any]) -> T:
    """A dataclass of its JSON object: lists become tuples again, and fields this version does not know are left out."""
    names = {field.name for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    return kind(
        **{name: tuple(value) if isinstance(value, list) else value for name, value in values.items() if name in names}
    )


def write_json(path: Path, value: Any) -> None:
    """Writes a dataclass as JSON, whole or not at all: a reader never sees half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(json.dumps(_plain(value), indent=2, allow_nan=False) + "\n")
        file.flush()
        os.fsync(file.fileno())  # a summary counts as the end of a run: its checkpoints are removed behind it
    os.replace(temporary, path)


def write_failure(folder: Path, rank: int, error: BaseException) -> None:
    """Writes down why a rank ends: at once, before its process ends and the others fail for want of it."""
    failure = Failure(
        rank=rank,
        host=socket.gethostname(),
        time_s=time.time(),
        error=type(error).__name__,
        message=str(error),
        traceback="".join(traceback.format_exception(error)),
        user_error=isinstance(error, UserError),
    )
    try:
        write_json(folder / failure_name(rank), failure)
    except OSError as unwritten:
        error.add_note(f"and its record could not be written: {unwritten}")


def median_or_none(values: Sequence[float]) -> float | None:
    """The median, or None of nothing."""
    return statistics.median(values) if values else None
