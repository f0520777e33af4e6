"""What was asked of a cluster: an append-only file of submissions, locked and synced, that survives a crash."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from disttrain.errors import UserError

LEDGER_NAME = "ledger.jsonl"
_LOCK_TIMEOUT_S = 60


@dataclass(frozen=True)
class QueueProcess:
    """The process that works through a local queue: while it lives its runs do."""

    host: str
    pid: int
    created_s: float  # a pid is given out again, one with the same start is not


@dataclass(frozen=True)
class Job:
    """One run as it was last sent."""

    run_id: str
    job_id: str  # sacct's: 123_4 of an array, 123 of a plain job
    submitted_s: float
    queue: QueueProcess | None = None  # of the local executor


@dataclass(frozen=True)
class Ledger:
    """The submissions of one sweep on one cluster."""

    jobs: Mapping[str, tuple[Job, ...]]  # of each run, by run_id, the latest job last
    unconfirmed: tuple[str, ...]  # runs whose last submission was begun, and neither recorded nor given up

    def all_jobs(self) -> Iterator[Job]:
        """Every job that was ever sent."""
        return itertools.chain.from_iterable(self.jobs.values())


def read_ledger(folder: Path) -> Ledger:
    """The ledger of a sweep's folder; an empty one where nothing was submitted."""
    path = folder / LEDGER_NAME
    return replay(read_lines(path) if path.exists() else ())


def replay(events: Iterable[Mapping[str, Any]]) -> Ledger:
    """The state that a sequence of events leads to.

    Example:
        >>> replay([{"event": "intend", "run_ids": ["a"], "time_s": 1.0},
        ...         {"event": "record", "jobs": {"a": "7"}, "time_s": 2.0}]).jobs["a"][-1].job_id
        '7'
    """
    jobs: dict[str, tuple[Job, ...]] = {}
    open_runs: dict[str, None] = {}
    for event in events:
        if event["event"] == "intend":
            open_runs.update(dict.fromkeys(event["run_ids"]))
        elif event["event"] == "record":
            queue = QueueProcess(**event["queue"]) if event.get("queue") else None
            for run_id, job_id in event["jobs"].items():
                jobs[run_id] = (*jobs.get(run_id, ()), Job(run_id, job_id, event["time_s"], queue))
                open_runs.pop(run_id, None)
        elif event["event"] == "give_up":
            for run_id in event["run_ids"]:
                open_runs.pop(run_id, None)
    return Ledger(jobs, tuple(open_runs))


def intend(folder: Path, run_ids: Sequence[str], time_s: float) -> None:
    """Notes that these runs are about to be sent, before anything is: a crash then leaves a trace."""
    _append(folder, {"event": "intend", "time_s": time_s, "run_ids": list(run_ids)})


def record(folder: Path, jobs: Mapping[str, str], time_s: float, queue: QueueProcess | None = None) -> None:
    """Notes the job id that each run got, and of a local run the process that works through its queue."""
    event: dict[str, Any] = {"event": "record", "time_s": time_s, "jobs": dict(jobs)}
    _append(folder, {**event, "queue": asdict(queue)} if queue else event)


def give_up(folder: Path, run_ids: Sequence[str], time_s: float, reason: str) -> None:
    """Notes that the scheduler refused these runs."""
    _append(folder, {"event": "give_up", "time_s": time_s, "run_ids": list(run_ids), "reason": reason})


@contextmanager
def submission_lock(folder: Path) -> Iterator[None]:
    """Holds the lock of one submission of a sweep, so that two at once cannot send the same runs.

    Raises:
        UserError: Somebody else holds it.
    """
    lock = FileLock(folder / ".submit.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise UserError(
            f"another sweep submit is at work in {folder}", hint="wait until it has returned, then try again"
        ) from None
    try:
        yield
    finally:
        lock.release()


def append_lines(path: Path, lines: Sequence[str]) -> None:
    """Appends whole lines, under the file's lock and synced; a torn last line of an earlier crash is ended first."""
    with FileLock(path.with_name(f".{path.name}.lock"), timeout=_LOCK_TIMEOUT_S), path.open("ab+") as file:
        if file.tell() > 0:
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.write(b"\n")
        file.write("".join(line + "\n" for line in lines).encode())
        file.flush()
        os.fsync(file.fileno())


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The JSON objects of a file that `append_lines` wrote; what a crash tore is left out."""
    found = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            continue  # the one torn line that a crash can leave
    return found


def _append(folder: Path, event: Mapping[str, Any]) -> None:
    append_lines(folder / LEDGER_NAME, [json.dumps(event)])
